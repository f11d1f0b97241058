// module.cpp — what Python needs of the build that is not a tensor op: how it was compiled.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

namespace py = pybind11;

namespace {

py::list words(const std::string& text) {
  py::list list;
  std::istringstream stream(text);
  for (std::string word; stream >> word;) list.append(word);
  return list;
}

py::dict build_info() {
  py::dict info;
  info["version"] = TINYSERVE_VERSION;
  info["compiler"] = "gcc " __VERSION__;
  info["cpu_isas"] = words(TINYSERVE_ISAS);
  info["cuda_archs"] = words(TINYSERVE_ARCHS);
  return info;
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "How the kernel libraries were built.";
  module.def(
      "build_info", &build_info,
      "version, compiler, cpu_isas (instruction sets compiled, best first), cuda_archs (empty: no CUDA library).");
}
