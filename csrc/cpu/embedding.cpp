// embedding.cpp — rows of a matrix, copied.
#include "vec.h"

namespace tinyserve::cpu::TINYSERVE_ISA {

void embedding(const EmbeddingArgs& a) {
  const auto* from = static_cast<const char*>(a.weight);
  auto* to = static_cast<char*>(a.y);
  for (int64_t t = 0; t < a.tokens; ++t) memcpy(to + t * a.row_bytes, from + a.rows[t] * a.row_bytes, a.row_bytes);
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
