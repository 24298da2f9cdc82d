// Loads an exported model with TensorFlow's own loader, the one TensorFlow Serving is built on,
// and prints the reconstruction of one row.
//
//     ./build.sh && ./reconstruct models/houses/1
//
// The row has features of 0 and, for every other input, an unseen key or the position 0: what a
// client sends before it knows the model. Replace `MakeInput` by your own data.

#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/public/session_options.h"

namespace tf = tensorflow;

// One row of an input, by its type and shape in the signature.
tf::Tensor MakeInput(const tf::TensorInfo& info) {
  tf::TensorShape shape({1});
  if (info.tensor_shape().dim_size() == 2) shape.AddDim(info.tensor_shape().dim(1).size());
  tf::Tensor tensor(info.dtype(), shape);
  if (info.dtype() == tf::DT_STRING) {
    tensor.flat<tf::tstring>().setConstant("a new key");
  } else if (info.dtype() == tf::DT_INT64) {
    tensor.flat<int64_t>().setConstant(-1);
  } else {
    tensor.flat<float>().setZero();
  }
  return tensor;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: reconstruct FOLDER_OF_A_SAVED_MODEL\n";
    return 2;
  }
  tf::SavedModelBundle bundle;
  absl::Status status = tf::LoadSavedModel(tf::SessionOptions(), tf::RunOptions(), argv[1],
                                         {"serve"}, &bundle);
  if (!status.ok()) {
    std::cerr << status.ToString() << "\n";
    return 1;
  }
  const auto& signature = bundle.GetSignatures().at("serving_default");
  std::vector<std::pair<std::string, tf::Tensor>> inputs;
  for (const auto& [name, info] : signature.inputs()) {
    inputs.emplace_back(info.name(), MakeInput(info));
  }
  std::vector<tf::Tensor> outputs;
  status = bundle.GetSession()->Run(inputs, {signature.outputs().at("reconstruction").name()}, {},
                                    &outputs);
  if (!status.ok()) {
    std::cerr << status.ToString() << "\n";
    return 1;
  }
  const auto row = outputs[0].matrix<float>();
  for (int feature = 0; feature < row.dimension(1); ++feature) {
    std::cout << row(0, feature) << (feature + 1 < row.dimension(1) ? " " : "\n");
  }
  return 0;
}
