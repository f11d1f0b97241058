// panels.h — a small matrix product in registers: rows of operands by a matrix cut into panels of kPanel columns.
//
// A panel holds its columns side by side, step after step: panel[i * kPanel + column]. Each output element is summed
// over i = 0, 1, 2, ... whatever the number of rows and panels in a call, so a row's result never depends on its
// neighbours.
#pragma once

#include "operand.h"

namespace tinyserve::cpu::TINYSERVE_ISA {

constexpr int kPanelVecs = 2;
constexpr int kPanel = kPanelVecs * kWidth;  // columns
constexpr int kPanelRows = 6;                // rows at once: with 2 vectors each, the sums that 16 registers can hold

template <typename Operand>
struct PanelProduct {
  const Operand* rows;    // [n, depth], row_stride apart
  const Operand* panels;  // [num_panels, depth, kPanel], panel_stride apart
  float* out;             // [n, num_panels * kPanel], out_stride apart
  int64_t row_stride, panel_stride, out_stride;
  int64_t depth, num_panels;  // depth in operands
};

template <int Rows, int Panels, typename Operand>
void multiply_block(const PanelProduct<Operand> p, int64_t first_panel) {
  constexpr int kVecs = Panels * kPanelVecs;
  const Operand *rows = p.rows, *panels = p.panels + first_panel * p.panel_stride;
  float* out = p.out + first_panel * kPanel;
  // Unrolled by name: else GCC keeps the sums in memory before and after the loop.
  SumVec<Operand> sums[Rows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sums[r][v] = SumVec<Operand>{};
  for (int64_t i = 0; i < p.depth; ++i) {
    OperandVec<Operand> columns[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      const Operand* panel = panels + v / kPanelVecs * p.panel_stride;
      columns[v] = load_as<OperandVec<Operand>>(panel + i * kPanel + v % kPanelVecs * kWidth);
    }
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < kVecs; ++v) sums[r][v] = multiply_add(sums[r][v], rows[r * p.row_stride + i], columns[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(out + r * p.out_stride + v * kWidth, as_floats(sums[r][v]));
}

// With few rows, enough panels for the sums to hide an FMA's latency.
constexpr int panels_at_once(int64_t rows) { return rows <= 2 ? 4 : rows == 3 ? 2 : 1; }

template <int Rows, typename Operand>
void multiply_rows(const PanelProduct<Operand>& p) {
  constexpr int kPanelsAtOnce = panels_at_once(Rows);
  int64_t panel = 0;
  for (; panel + kPanelsAtOnce <= p.num_panels; panel += kPanelsAtOnce) multiply_block<Rows, kPanelsAtOnce>(p, panel);
  for (; panel < p.num_panels; ++panel) multiply_block<Rows, 1>(p, panel);
}

// rows x panels for 1 to kPanelRows rows
template <typename Operand>
void multiply(const PanelProduct<Operand>& product, int64_t num_rows) {
  switch (num_rows) {
    case 1:
      return multiply_rows<1>(product);
    case 2:
      return multiply_rows<2>(product);
    case 3:
      return multiply_rows<3>(product);
    case 4:
      return multiply_rows<4>(product);
    case 5:
      return multiply_rows<5>(product);
    default:
      return multiply_rows<kPanelRows>(product);
  }
}

}  // namespace tinyserve::cpu::TINYSERVE_ISA
