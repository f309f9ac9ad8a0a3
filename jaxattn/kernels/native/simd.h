// Vectors, in the vector extensions of GCC and Clang: one source for all instruction sets.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "problem.h"

namespace jaxattn::JAXATTN_ISA {

// The vector's length VL in floats, and how many vectors wide a panel is: a product of 6 rows and a panel keeps its
// sums in registers, 24 of 32 (AVX-512, NEON) or 12 of 16 (AVX2).
#if defined(__AVX512F__)
constexpr int VL = 16, kPanelVectors = 4;
#elif defined(__AVX2__)
constexpr int VL = 8, kPanelVectors = 2;
#else
constexpr int VL = 4, kPanelVectors = 4;
#endif
constexpr int kPanel = VL * kPanelVectors;

typedef float Floats __attribute__((vector_size(VL * 4)));
typedef int32_t Ints __attribute__((vector_size(VL * 4)));
typedef uint32_t Bits __attribute__((vector_size(VL * 4)));

JAXATTN_INLINE Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
JAXATTN_INLINE void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
JAXATTN_INLINE Ints load_ints(const int32_t* from) {
  Ints x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
JAXATTN_INLINE Floats splat(float x) { return Floats{} + x; }
JAXATTN_INLINE Ints splat_int(int32_t x) { return Ints{} + x; }
JAXATTN_INLINE Ints lanes() {
  Ints x;
  for (int i = 0; i < VL; ++i) x[i] = i;
  return x;
}
JAXATTN_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

typedef float Floats8 __attribute__((vector_size(32)));
typedef float Floats4 __attribute__((vector_size(16)));

// Join both halves of a vector until one number is left.
template <class Join>
JAXATTN_INLINE float reduce(Floats4 x, Join join) {
  Floats4 pair = join(x, __builtin_shufflevector(x, x, 2, 3, 0, 1));
  return join(pair, __builtin_shufflevector(pair, pair, 1, 0, 3, 2))[0];
}
#if defined(__AVX2__)
template <class Join>
JAXATTN_INLINE float reduce(Floats8 x, Join join) {
  return reduce(join(__builtin_shufflevector(x, x, 0, 1, 2, 3), __builtin_shufflevector(x, x, 4, 5, 6, 7)), join);
}
#endif
#if defined(__AVX512F__)
template <class Join>
JAXATTN_INLINE float reduce(Floats x, Join join) {
  return reduce(join(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
                     __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15)), join);
}
#endif
JAXATTN_INLINE float sum_of(Floats x) {
  return reduce(x, [](auto a, auto b) { return a + b; });
}
JAXATTN_INLINE float largest_of(Floats x) {
  return reduce(x, [](auto a, auto b) { return a > b ? a : b; });
}

// 2 to the power x, for x of at most 127; 0 below the normal numbers, NaN for NaN. Adding 1.5 * 2^23 rounds to an
// integer, which ends up in the last bits. The polynomial is a minimax one on [-0.5, 0.5], relative error 8e-8.
JAXATTN_INLINE Floats exp2(Floats x) {
  const Floats lowest = splat(-126.0f);
  Floats clipped = x < lowest ? lowest : x;
  Floats shifted = clipped + 12582912.0f;
  Floats fraction = clipped - (shifted - 12582912.0f);
  Floats sum = fraction * 0x1.41fbbcp-13f + 0x1.5f3e54p-10f;
  sum = sum * fraction + 0x1.3b2d4cp-7f;
  sum = sum * fraction + 0x1.c6aee8p-5f;
  sum = sum * fraction + 0x1.ebfbdcp-3f;
  sum = sum * fraction + 0x1.62e430p-1f;
  sum = sum * fraction + 1.0f;
  Floats power = (Floats)((Ints)sum + ((Ints)shifted << 23));
  return x < lowest ? Floats{} : power;
}

// The hyperbolic tangent: near 0 an odd polynomial, fitted by least squares, relative error 1e-7; beyond, by exp2.
JAXATTN_INLINE Floats tanh(Floats x) {
  Floats size = x < 0.0f ? -x : x;
  Floats clipped = size > 10.0f ? splat(10.0f) : size;
  Floats far = 1.0f - 2.0f / (exp2(clipped * 2.88539008f) + 1.0f);
  Floats square = x * x;
  Floats sum = square * -0.005864149f + 0.02082964f;
  sum = sum * square - 0.05381397f;
  sum = sum * square + 0.13332517f;
  sum = sum * square - 0.33333326f;
  return size < 0.625f ? x + x * square * sum : x < 0.0f ? -far : far;
}

constexpr float kLowest = -3.40282347e38f;

// How many floats take as much memory.
template <class T>
JAXATTN_INLINE int64_t floats_for(int64_t count) {
  return ceil_div(count * int64_t(sizeof(T)), sizeof(float));
}

// Hands out parts of a thread's scratch memory, aligned for vectors.
struct Scratch {
  float* next;
  float* take(int64_t floats) {
    float* part = next;
    next += round_up(floats, 16);
    return part;
  }
  template <class T>
  T* take_as(int64_t count) {
    return reinterpret_cast<T*>(take(floats_for<T>(count)));
  }
};

// ---- Numbers of the arrays' types

struct Float32 {
  using Stored = float;
  static constexpr bool kIsFloat = true;
  JAXATTN_INLINE float widen(float x) { return x; }
  JAXATTN_INLINE float narrow(float x) { return x; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static constexpr bool kIsFloat = false;
  JAXATTN_INLINE float widen(uint16_t x) {
    uint32_t bits = uint32_t{x} << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
  }
  JAXATTN_INLINE uint16_t narrow(float x) {  // rounds to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uint32_t nan = (bits >> 16) | 0x40;
    return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
  }
};

#if defined(__aarch64__)
typedef __fp16 Half;
#else
typedef _Float16 Half;
#endif

struct Float16 {
  using Stored = Half;
  static constexpr bool kIsFloat = false;
  JAXATTN_INLINE float widen(Half x) { return float(x); }
  JAXATTN_INLINE Half narrow(float x) { return Half(x); }
};

template <class Number>
JAXATTN_INLINE const typename Number::Stored* elements(const Operand& array, int64_t before) {
  return reinterpret_cast<const typename Number::Stored*>(array.data) + before;
}

// A vector of numbers as floats.
template <class Number>
JAXATTN_INLINE Floats load_wide(const typename Number::Stored* from) {
  if constexpr (Number::kIsFloat) return load(from);
  float wide[VL];
  for (int i = 0; i < VL; ++i) wide[i] = Number::widen(from[i]);
  return load(wide);
}

template <class Number>
JAXATTN_INLINE void load_row(const typename Number::Stored* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = Number::widen(from[i]);
}

template <class Number>
JAXATTN_INLINE void store_row(const float* from, int64_t n, float scale, typename Number::Stored* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = Number::narrow(from[i] * scale);
}

template <class Number>
JAXATTN_INLINE float product_of_rows(const typename Number::Stored* a, const typename Number::Stored* b, int64_t n) {
  Floats sums = {};
  int64_t i = 0;
  for (; i + VL <= n; i += VL) sums += load_wide<Number>(a + i) * load_wide<Number>(b + i);
  float sum = sum_of(sums);
  for (; i < n; ++i) sum += Number::widen(a[i]) * Number::widen(b[i]);
  return sum;
}

// Rows as floats, padded to whole vectors: where they lie if they are so already, or copied into `copy`.
struct Rows {
  const float* data;
  int64_t stride;
};

template <class Number>
JAXATTN_INLINE Rows as_rows(const typename Number::Stored* from, int64_t stride, int64_t rows, int64_t width,
                            float* copy) {
  if constexpr (Number::kIsFloat)
    if (width % VL == 0) return {from, stride};
  int64_t padded = round_up(width, VL);
  for (int64_t i = 0; i < rows; ++i) {
    load_row<Number>(from + i * stride, width, copy + i * padded);
    for (int64_t j = width; j < padded; ++j) copy[i * padded + j] = 0;
  }
  return {copy, padded};
}

// Swap blocks of `step` lanes between two vectors: the first halves of all pairs of blocks, and the second halves.
template <int step, int... j>
JAXATTN_INLINE void swap_blocks(Floats& a, Floats& b, std::integer_sequence<int, j...>) {
  Floats first = __builtin_shufflevector(a, b, ((j & step) ? VL + j - step : j)...);
  b = __builtin_shufflevector(a, b, ((j & step) ? VL + j : j + step)...);
  a = first;
}

template <int step>
JAXATTN_INLINE void transpose(Floats* rows) {
  for (int i = 0; i < VL; ++i)
    if (!(i & step)) swap_blocks<step>(rows[i], rows[i + step], std::make_integer_sequence<int, VL>());
  if constexpr (step > 1) transpose<step / 2>(rows);
}

// Up to kPanel rows (rows, width), transposed into a panel (width, kPanel); missing rows are 0.
template <class Number>
inline void pack_panel(const typename Number::Stored* from, int64_t stride, int64_t rows, int64_t width, float* to) {
  for (int64_t first = 0; first < kPanel; first += VL) {
    int64_t d = 0;
    for (; d + VL <= width; d += VL) {
      Floats block[VL];
      for (int i = 0; i < VL; ++i)
        block[i] = first + i < rows ? load_wide<Number>(from + (first + i) * stride + d) : Floats{};
      transpose<VL / 2>(block);
      for (int i = 0; i < VL; ++i) store(to + (d + i) * kPanel + first, block[i]);
    }
    for (; d < width; ++d)
      for (int64_t i = first; i < first + VL; ++i)
        to[d * kPanel + i] = i < rows ? Number::widen(from[i * stride + d]) : 0.0f;
  }
}

// ---- Matrix products

// C (MR rows, NV vectors) = or += A B over n steps. A's entry for row i and step k is a[i * a_row + k * a_step].
template <int MR, int NV, bool kAdd>
JAXATTN_INLINE void multiply_tile(int64_t n, const float* a, int64_t a_row, int64_t a_step, const float* b,
                                  int64_t b_step, float* c, int64_t c_row) {
  Floats sums[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) sums[i][j] = kAdd ? load(c + i * c_row + j * VL) : Floats{};
  for (int64_t k = 0; k < n; ++k) {
    Floats column[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) column[j] = load(b + k * b_step + j * VL);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      float factor = a[i * a_row + k * a_step];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sums[i][j] += factor * column[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(c + i * c_row + j * VL, sums[i][j]);
}

// How many rows keep the registers full, for so many vectors.
constexpr int tile_rows(int vectors) {
  return VL == 8 ? (vectors == 1 ? 12 : 6) : (vectors <= 2 ? 12 : vectors == 3 ? 8 : 6);
}
template <int MR, int NV, bool kAdd>
JAXATTN_INLINE void multiply_rest(int64_t m, int64_t n, const float* a, int64_t a_row, int64_t a_step, const float* b,
                                  int64_t b_step, float* c, int64_t c_row) {
  if (m == MR) return multiply_tile<MR, NV, kAdd>(n, a, a_row, a_step, b, b_step, c, c_row);
  if constexpr (MR > 1) multiply_rest<MR - 1, NV, kAdd>(m, n, a, a_row, a_step, b, b_step, c, c_row);
}

template <int NV, bool kAdd>
void multiply_columns(int64_t m, int64_t n, const float* a, int64_t a_row, int64_t a_step, const float* b,
                      int64_t b_step, float* c, int64_t c_row) {
  constexpr int MR = tile_rows(NV);
  int64_t i = 0;
  for (; i + MR <= m; i += MR) multiply_tile<MR, NV, kAdd>(n, a + i * a_row, a_row, a_step, b, b_step, c + i * c_row, c_row);
  if (i < m) multiply_rest<MR - 1, NV, kAdd>(m - i, n, a + i * a_row, a_row, a_step, b, b_step, c + i * c_row, c_row);
}

// As `multiply_columns`, for any number of vectors in a panel.
template <bool kAdd>
JAXATTN_INLINE void multiply_vectors(int vectors, int64_t m, int64_t n, const float* a, int64_t a_row, int64_t a_step,
                                     const float* b, int64_t b_step, float* c, int64_t c_row) {
  if (vectors == kPanelVectors) return multiply_columns<kPanelVectors, kAdd>(m, n, a, a_row, a_step, b, b_step, c, c_row);
  if constexpr (kPanelVectors > 3)
    if (vectors == 3) return multiply_columns<3, kAdd>(m, n, a, a_row, a_step, b, b_step, c, c_row);
  if constexpr (kPanelVectors > 2)
    if (vectors == 2) return multiply_columns<2, kAdd>(m, n, a, a_row, a_step, b, b_step, c, c_row);
  if (vectors == 1) multiply_columns<1, kAdd>(m, n, a, a_row, a_step, b, b_step, c, c_row);
}

// C (m, width) += A (m, n) B (n, width); the width is in whole vectors.
JAXATTN_INLINE void multiply_add(int64_t m, int64_t n, int64_t width, const float* a, int64_t a_row, int64_t a_step,
                                 const float* b, int64_t b_step, float* c, int64_t c_row) {
  int64_t j = 0;
  for (; j + kPanel <= width; j += kPanel)
    multiply_columns<kPanelVectors, true>(m, n, a, a_row, a_step, b + j, b_step, c + j, c_row);
  multiply_vectors<true>(int(width - j) / VL, m, n, a, a_row, a_step, b + j, b_step, c + j, c_row);
}

// ---- Memory

// Ask for a row of an array that the next task reads. Rows of one head lie far apart, so the hardware does not guess.
JAXATTN_INLINE void prefetch_row(const Operand& array, int64_t element, int64_t row, int64_t width, Type type) {
  int64_t size = type == Type::kFloat32 ? 4 : 2;
  const char* from = array.data + (element + row * array.row) * size;
  for (int64_t i = 0; i < width * size; i += 64) __builtin_prefetch(from + i, 0, 2);
}

// ---- Dropout

// The same hash as in random_bits.py.
JAXATTN_INLINE Ints is_kept(Bits bits, uint32_t drop_below) {
  bits = (bits ^ (bits >> 16)) * 0x7FEB352Du;
  bits = (bits ^ (bits >> 15)) * 0x846CA68Bu;
  return (bits ^ (bits >> 16)) >= drop_below;
}

}  // namespace jaxattn::JAXATTN_ISA
