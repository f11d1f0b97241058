// table.cpp — gathers the kernels of one instruction set; compiled once for each, like the kernels.
#include "../kernels.h"

namespace tinyserve::cpu::TINYSERVE_ISA {

#define TINYSERVE_DECLARE(op, Args) void op(const Args& args);
TINYSERVE_CPU_KERNELS(TINYSERVE_DECLARE)

#define TINYSERVE_STRING(name) #name
#define TINYSERVE_NAME(macro) TINYSERVE_STRING(macro)
#define TINYSERVE_ENTRY(op, Args) .op = op,
extern const Table table;
const Table table = {.isa = TINYSERVE_NAME(TINYSERVE_ISA), TINYSERVE_CPU_KERNELS(TINYSERVE_ENTRY)};

}  // namespace tinyserve::cpu::TINYSERVE_ISA
