#!/bin/sh
# Builds ./reconstruct against the installed TensorFlow: headers and libraries of the wheel.
#
#     PYTHON=.venv/bin/python ./build.sh [OUTPUT]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$("${PYTHON:-python3}" -c 'import importlib.util as u; print(u.find_spec("tensorflow").submodule_search_locations[0])')
"${CXX:-g++}" -std=c++17 -O1 "$here/reconstruct.cc" -o "${1:-$here/reconstruct}" \
    -isystem "$root/include" -D_GLIBCXX_USE_CXX11_ABI=1 \
    -L"$root" -Wl,--no-as-needed -l:libtensorflow_framework.so.2 -l:libtensorflow_cc.so.2 \
    -Wl,-rpath,"$root"
