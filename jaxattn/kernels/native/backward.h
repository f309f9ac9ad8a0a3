// The backward pass: for each key block, all query blocks that attend to it (the formulas are in
// ../blockwise_backward.py).
//
// Scores are transposed, keys x queries, so that the logsumexp and delta of queries lie along a row. A task is a share of
// the key blocks of one example and KV head. Where a head has several tasks, each adds up a query gradient of its own,
// and these are joined in a fixed order.
#pragma once

#include "masks.h"

namespace jaxattn::JAXATTN_ISA {

// One query head, and the gradients that are added up.
struct BackwardHead {
  const Problem& p;
  BatchIndex b;
  int64_t example, kv_head, head = 0;
  int64_t T = 0;                                               // padded to whole panels
  Rows key = {}, value = {}, query = {}, gradient = {};
  float *query_panels = nullptr, *gradient_panels = nullptr;   // (T, D) and (T, Dv), in panels
  float *largest = nullptr, *log_total = nullptr, *delta = nullptr;  // (T)
  int32_t *first_key = nullptr, *end_key = nullptr;            // (T): the range of each query
  Range *any_keys = nullptr, *all_keys = nullptr;              // (T / VL): of a vector of queries: of any, of all
  float *key_copy = nullptr, *value_copy = nullptr, *query_copy = nullptr, *gradient_copy = nullptr;
  float *weights = nullptr, *slopes = nullptr;                 // a tile (kKeyRows, kQueries): after dropout; and dS
  MaskView mask = {};
  bool of_bias = false;  // the gradient of the bias is computed
};

JAXATTN_INLINE bool needs_copy(const Problem& p, int64_t width) {
  return p.type != Type::kFloat32 || width % VL != 0;
}

inline size_t head_scratch(const Problem& p) {
  int64_t T = round_up(p.T, kPanel), D = round_up(p.D, VL), Dv = round_up(p.Dv, VL);
  int64_t copies = (needs_copy(p, p.D) ? D : 0) + (needs_copy(p, p.Dv) ? Dv : 0);
  return T * (p.D + p.Dv + 5) + (p.T + p.S) * copies + 2 * floats_for<Range>(T / VL) + 2 * kKeyRows * kQueries + 16 * 16;
}

inline BackwardHead take_head(const Problem& p, Scratch& scratch, int64_t example, int64_t kv_head) {
  int64_t T = round_up(p.T, kPanel);
  BackwardHead h = {p, batch_index(p, example), example, kv_head};
  h.T = T;
  h.query_panels = scratch.take(T * p.D), h.gradient_panels = scratch.take(T * p.Dv);
  h.largest = scratch.take(T), h.log_total = scratch.take(T), h.delta = scratch.take(T);
  h.first_key = scratch.take_as<int32_t>(T), h.end_key = scratch.take_as<int32_t>(T);
  h.any_keys = scratch.take_as<Range>(T / VL), h.all_keys = scratch.take_as<Range>(T / VL);
  int64_t D = needs_copy(p, p.D) ? round_up(p.D, VL) : 0, Dv = needs_copy(p, p.Dv) ? round_up(p.Dv, VL) : 0;
  h.key_copy = scratch.take(p.S * D), h.value_copy = scratch.take(p.S * Dv);
  h.query_copy = scratch.take(p.T * D), h.gradient_copy = scratch.take(p.T * Dv);
  h.weights = scratch.take(kKeyRows * kQueries), h.slopes = scratch.take(kKeyRows * kQueries);
  return h;
}

template <class Number>
inline void load_keys(BackwardHead& h) {
  const Problem& p = h.p;
  const auto* key = elements<Number>(p.key, offset(p.key, h.b, p.batch_rank, h.kv_head));
  const auto* value = elements<Number>(p.value, offset(p.value, h.b, p.batch_rank, h.kv_head));
  h.key = as_rows<Number>(key, p.key.row, p.S, p.D, h.key_copy);
  h.value = as_rows<Number>(value, p.value.row, p.S, p.Dv, h.value_copy);
}

inline void find_ranges(BackwardHead& h) {
  for (int64_t vector = 0; vector * VL < h.T; ++vector) {
    Range any = {h.p.S, 0}, all = {0, h.p.S};
    for (int64_t t = vector * VL; t < (vector + 1) * VL; ++t) {
      Range keys = t < h.p.T ? key_range(h.mask, t, h.p.S) : Range{0, 0};
      h.first_key[t] = int32_t(keys.begin), h.end_key[t] = int32_t(keys.end);
      all = common(all, keys);
      if (keys.begin < keys.end) any = {least(any.begin, keys.begin), most(any.end, keys.end)};
    }
    h.any_keys[vector] = any, h.all_keys[vector] = all;
  }
}

template <class Number>
inline void load_queries(BackwardHead& h, int64_t head) {
  const Problem& p = h.p;
  h.head = head;
  const auto* query = elements<Number>(p.query, offset(p.query, h.b, p.batch_rank, head));
  const auto* gradient = elements<Number>(p.gradient, offset(p.gradient, h.b, p.batch_rank, head));
  const auto* context = elements<Number>(p.context_in, offset(p.context_in, h.b, p.batch_rank, head));
  const float* largest = elements<Float32>(p.largest_in, offset(p.largest_in, h.b, p.batch_rank, head));
  const float* log_total = elements<Float32>(p.log_total_in, offset(p.log_total_in, h.b, p.batch_rank, head));
  h.query = as_rows<Number>(query, p.query.row, p.T, p.D, h.query_copy);
  h.gradient = as_rows<Number>(gradient, p.gradient.row, p.T, p.Dv, h.gradient_copy);
  for (int64_t t = 0; t < h.T; t += kPanel) {
    int64_t rows = least(kPanel, p.T - t);
    pack_panel<Number>(query + t * p.query.row, p.query.row, rows, p.D, h.query_panels + t * p.D);
    pack_panel<Number>(gradient + t * p.gradient.row, p.gradient.row, rows, p.Dv, h.gradient_panels + t * p.Dv);
  }
  for (int64_t t = 0; t < h.T; ++t) {
    bool real = t < p.T;
    h.largest[t] = real ? largest[t * p.largest_in.row] : 0.0f;
    h.log_total[t] = real ? log_total[t * p.log_total_in.row] : __builtin_inff();
    h.delta[t] =
        real ? product_of_rows<Number>(context + t * p.context_in.row, gradient + t * p.gradient.row, p.Dv) : 0.0f;
  }
  if (p.lse_gradient.data) {
    const float* of_lse = elements<Float32>(p.lse_gradient, offset(p.lse_gradient, h.b, p.batch_rank, head));
    for (int64_t t = 0; t < p.T; ++t) h.delta[t] -= of_lse[t * p.lse_gradient.row];
  }
  h.mask = mask_view(p, h.b, head);
  find_ranges(h);
}

// The queries among these that attend to any of the keys, in whole vectors.
inline Range queries_of(const BackwardHead& h, Range keys, Range queries) {
  int64_t begin = queries.begin, end = queries.end;
  while (begin < end && !overlap(h.any_keys[begin / VL], keys)) begin += VL;
  while (begin < end && !overlap(h.any_keys[end / VL - 1], keys)) end -= VL;
  return {begin, end};
}

// Scores, and gradients of the weights: two products for each group of keys and panel of queries.
inline void multiply_by_queries(const BackwardHead& h, Range keys, Range queries) {
  const Problem& p = h.p;
  for (int64_t panel = queries.begin; panel < queries.end; panel += kPanel) {
    for (int64_t s = keys.begin; s < keys.end; s += kGroup) {
      Range group = {s, least(s + kGroup, keys.end)}, with = queries_of(h, group, {panel, panel + kPanel});
      int64_t at = (s - keys.begin) * kQueries + with.begin - queries.begin, rows = group.end - group.begin;
      int vectors = int(with.end - with.begin) / VL;
      multiply_vectors<false>(vectors, rows, p.D, h.key.data + s * h.key.stride, h.key.stride, 1,
                              h.query_panels + panel * p.D + with.begin - panel, kPanel, h.weights + at, kQueries);
      multiply_vectors<false>(vectors, rows, p.Dv, h.value.data + s * h.value.stride, h.value.stride, 1,
                              h.gradient_panels + panel * p.Dv + with.begin - panel, kPanel, h.slopes + at, kQueries);
    }
  }
}

// Turn the products of a key into logits, with cap and bias, and mask them entry by entry. `slopes` get the cap's.
inline void finish_logits(const BackwardHead& h, int64_t s, int64_t t, int64_t n, Coverage covered, float* scores,
                          float* slopes) {
  const Problem& p = h.p;
  if (p.soft_cap > 0) cap_row(p, n, scores, slopes);
  if (p.bias.data) {
    const float scale = p.soft_cap > 0 ? 1.0f : p.score_scale;
    const float* bias = elements<Float32>(p.bias, offset(p.bias, h.b, p.batch_rank, h.head)) + s * p.bias.column;
    for (int64_t i = 0; i < n && t + i < p.T; ++i) scores[i] = scores[i] * scale + bias[(t + i) * p.bias.row];
  }
  if (covered != kSome) return;
  int32_t allowed[kRun];
  int64_t real = least(n, p.T - t);
  test_entries<false>(h.mask, t, s, real, allowed);
  for (int64_t i = 0; i < real; ++i) scores[i] = allowed[i] ? scores[i] : -__builtin_inff();
}

// Turn n scores of key s, from query t on, into weights, and the weights' gradients into dS.
template <bool kRanged, bool kDropped>
inline void differentiate_row(const BackwardHead& h, int64_t s, int64_t t, int64_t n, float* scores, float* slopes) {
  const Problem& p = h.p;
  const Floats rate = splat(p.rate);
  const char *rows = nullptr, *columns = nullptr;
  if (kDropped) {
    rows = p.row_bits.data + 4 * offset(p.row_bits, h.b, p.batch_rank, h.head);
    columns = p.column_bits.data + 4 * offset(p.column_bits, h.b, p.batch_rank, h.head);
  }
  for (int64_t i = 0; i < n; i += VL) {
    Floats exponent = (load(scores + i) - load(h.largest + t + i)) * rate - load(h.log_total + t + i);
    if (kRanged) {
      Ints inside = (load_ints(h.first_key + t + i) <= int32_t(s)) & (load_ints(h.end_key + t + i) > int32_t(s));
      exponent = inside ? exponent : splat(-__builtin_inff());
    }
    // No weight exceeds 1, except by rounding where scores are huge.
    Floats weights = exp2(exponent > 0.0f ? Floats{} : exponent), of_weights = load(slopes + i), kept = weights;
    if (kDropped) {
      Ints bits = {};
      for (int j = 0; j < VL && t + i + j < p.T; ++j) bits[j] = int_at(rows, (t + i + j) * p.row_bits.row);
      Ints keep = is_kept((Bits)bits ^ uint32_t(int_at(columns, s)), p.drop_below);
      kept = keep ? weights * p.keep_factor : Floats{};
      of_weights = keep ? of_weights * p.keep_factor : Floats{};
    }
    store(scores + i, kept);
    // Where a weight is 0, an infinite gradient does not make it NaN.
    store(slopes + i, weights == 0.0f ? Floats{} : weights * (of_weights - load(h.delta + t + i)));
  }
}

template <bool kDropped>
inline void differentiate_vectors(const BackwardHead& h, int64_t s, Range queries, float* scores, float* slopes) {
  for (int64_t t = queries.begin; t < queries.end;) {
    // Neighbouring vectors, all of whose queries attend to the key, or not all.
    auto is_ranged = [&](int64_t t) { return s < h.all_keys[t / VL].begin || s >= h.all_keys[t / VL].end; };
    bool ranged = is_ranged(t);
    int64_t end = t + VL;
    while (end < queries.end && is_ranged(end) == ranged) end += VL;
    float *at = scores + t - queries.begin, *slopes_at = slopes + t - queries.begin;
    if (ranged)
      differentiate_row<true, kDropped>(h, s, t, end - t, at, slopes_at);
    else
      differentiate_row<false, kDropped>(h, s, t, end - t, at, slopes_at);
    t = end;
  }
}

// Weights and dS of a tile, for the queries from the first to the last that attends to any key of a group. Between them
// may be vectors that were not multiplied: what they hold is masked. For all others dS is 0.
inline void differentiate_tile(const BackwardHead& h, Range keys, Range queries, Coverage covered) {
  for (int64_t first = keys.begin; first < keys.end; first += kGroup) {
    Range group = {first, least(first + kGroup, keys.end)}, with = queries_of(h, group, queries);
    for (int64_t s = group.begin; s < group.end; ++s) {
      float *scores = h.weights + (s - keys.begin) * kQueries, *slopes = h.slopes + (s - keys.begin) * kQueries;
      std::memset(slopes, 0, (with.begin - queries.begin) * sizeof(float));
      std::memset(slopes + (with.end - queries.begin), 0, (queries.end - with.end) * sizeof(float));
      scores += with.begin - queries.begin, slopes += with.begin - queries.begin;
      float of_cap[kQueries];
      if (has_logits(h.p) || covered == kSome)
        finish_logits(h, s, with.begin, with.end - with.begin, covered, scores, of_cap);
      if (h.p.drop_below)
        differentiate_vectors<true>(h, s, with, scores, slopes);
      else
        differentiate_vectors<false>(h, s, with, scores, slopes);
      // The bias comes after the cap. Where nothing flows, an infinite score makes no NaN.
      if (h.p.soft_cap > 0 && !h.of_bias)
        for (int64_t i = 0; i < with.end - with.begin; ++i) slopes[i] = slopes[i] == 0 ? 0 : slopes[i] * of_cap[i];
    }
  }
}

// The keys of a tile to which any of these queries attends.
inline Range keys_of(const BackwardHead& h, Range queries, Range keys) {
  Range found = {keys.end, keys.begin};
  for (int64_t t = queries.begin; t < queries.end; ++t) {
    Range own = common({h.first_key[t], h.end_key[t]}, keys);
    if (own.begin < own.end) found = {least(found.begin, own.begin), most(found.end, own.end)};
  }
  return found;
}

// dV += P'^T dO and dK += dS^T Q for the keys of a tile, dQ += dS K for its queries.
inline void add_gradients(const BackwardHead& h, Range keys, Range queries, float* key_gradient, float* value_gradient,
                          float* query_gradient) {
  int64_t D = round_up(h.p.D, VL), Dv = round_up(h.p.Dv, VL);
  for (int64_t s = keys.begin; s < keys.end; s += kGroup) {
    Range group = {s, least(s + kGroup, keys.end)};
    Range with = queries_of(h, group, queries);
    with.end = least(with.end, h.p.T);
    if (with.begin >= with.end) continue;
    int64_t at = (s - keys.begin) * kQueries + with.begin - queries.begin;
    int64_t rows = group.end - group.begin, n = with.end - with.begin;
    multiply_add(rows, n, Dv, h.weights + at, kQueries, 1, h.gradient.data + with.begin * h.gradient.stride,
                 h.gradient.stride, value_gradient + s * Dv, Dv);
    multiply_add(rows, n, D, h.slopes + at, kQueries, 1, h.query.data + with.begin * h.query.stride, h.query.stride,
                 key_gradient + s * D, D);
  }
  for (int64_t t = queries.begin; t < least(queries.end, h.p.T); t += kGroup) {
    Range group = {t, least(t + kGroup, least(queries.end, h.p.T))};
    Range with = keys_of(h, group, keys);
    if (with.begin >= with.end) continue;
    int64_t at = (with.begin - keys.begin) * kQueries + t - queries.begin;
    multiply_add(group.end - group.begin, with.end - with.begin, D, h.slopes + at, 1, kQueries,
                 h.key.data + with.begin * h.key.stride, h.key.stride, query_gradient + t * D, D);
  }
}

// Compute weights and dS of a tile; returns whether any entry is unmasked.
inline bool compute_tile(const BackwardHead& h, Range keys, Range queries) {
  Range with = queries_of(h, keys, queries);
  if (with.begin >= with.end) return false;
  Coverage covered = h.p.mask_is_range ? kAll : coverage(h.mask, {queries.begin, least(queries.end, h.p.T)}, keys);
  if (covered == kNone) return false;
  multiply_by_queries(h, keys, queries);
  differentiate_tile(h, keys, queries, covered);
  return true;
}

inline int64_t backward_tasks(const Problem& p) { return p.B * p.K * p.splits; }

inline size_t backward_scratch(const Problem& p) {
  int64_t D = round_up(p.D, VL), Dv = round_up(p.Dv, VL);
  return head_scratch(p) + p.S * (D + Dv) + (p.splits == 1 ? p.T * D : 0) + 3 * 16;
}

inline size_t backward_partial(const Problem& p) {
  return p.splits == 1 ? 0 : p.splits * p.B * p.H * p.T * round_up(p.D, VL);
}

template <class Number>
inline void store_query_gradient(const Problem& p, int64_t example, int64_t head, const float* from) {
  auto* to = reinterpret_cast<typename Number::Stored*>(p.query_gradient);
  for (int64_t t = 0; t < p.T; ++t)
    store_row<Number>(from + t * round_up(p.D, VL), p.D, p.query_factor, to + ((example * p.T + t) * p.H + head) * p.D);
}

template <class Number>
inline void store_key_gradients(const BackwardHead& h, Range keys, const float* of_key, const float* of_value) {
  const Problem& p = h.p;
  auto* key = reinterpret_cast<typename Number::Stored*>(p.key_gradient);
  auto* value = reinterpret_cast<typename Number::Stored*>(p.value_gradient);
  for (int64_t s = keys.begin; s < keys.end; ++s) {
    int64_t row = (h.example * p.S + s) * p.K + h.kv_head;
    store_row<Number>(of_key + s * round_up(p.D, VL), p.D, p.key_factor, key + row * p.D);
    store_row<Number>(of_value + s * round_up(p.Dv, VL), p.Dv, 1.0f, value + row * p.Dv);
  }
}

template <class Number>
inline void backward_task(const Problem& p, int64_t task, float* memory) {
  Scratch scratch = {memory};
  int64_t split = task % p.splits, kv_head = task / p.splits % p.K, example = task / p.splits / p.K, G = p.H / p.K;
  int64_t D = round_up(p.D, VL), Dv = round_up(p.Dv, VL);
  BackwardHead h = take_head(p, scratch, example, kv_head);
  load_keys<Number>(h);
  float *of_key = scratch.take(p.S * D), *of_value = scratch.take(p.S * Dv);
  float* own = p.splits == 1 ? scratch.take(p.T * D) : nullptr;
  std::memset(of_key, 0, p.S * D * sizeof(float)), std::memset(of_value, 0, p.S * Dv * sizeof(float));
  for (int64_t head = kv_head * G; head < (kv_head + 1) * G; ++head) {
    load_queries<Number>(h, head);
    float* of_query = own ? own : p.partial + ((split * p.B + example) * p.H + head) * p.T * D;
    std::memset(of_query, 0, p.T * D * sizeof(float));
    for (int64_t s = split * kKeyRows; s < p.S; s += p.splits * kKeyRows) {
      Range keys = {s, least(s + kKeyRows, p.S)};
      for (int64_t t = 0; t < h.T; t += kQueries) {
        Range queries = {t, least(t + kQueries, h.T)};
        if (compute_tile(h, keys, queries)) add_gradients(h, keys, queries, of_key, of_value, of_query);
      }
    }
    if (own) store_query_gradient<Number>(p, example, head, own);
  }
  for (int64_t s = split * kKeyRows; s < p.S; s += p.splits * kKeyRows)
    store_key_gradients<Number>(h, {s, least(s + kKeyRows, p.S)}, of_key, of_value);
}

// Add up the query gradients of a head's tasks.
template <class Number>
inline void backward_join_task(const Problem& p, int64_t task, float*) {
  int64_t n = p.T * round_up(p.D, VL), step = p.B * p.H * n;
  float* sum = p.partial + task * n;
  for (int64_t split = 1; split < p.splits; ++split)
    for (int64_t i = 0; i < n; ++i) sum[i] += sum[split * step + i];
  store_query_gradient<Number>(p, task / p.H, task % p.H, sum);
}

// ---- The gradient of the bias: dS, summed over the axes in which the bias has 1. It is a call of its own, which
// compilers leave out where nothing uses it. A task is one key block of one plane (T, S) of the result.

inline int64_t bias_strips(const Problem& p) {
  return p.bias_gradient_strides.column && !p.bias_is_diagonal ? ceil_div(p.S, kKeyRows) : 1;
}

inline int64_t bias_plane(const Problem& p) {
  const Operand& strides = p.bias_gradient_strides;
  if (p.bias_is_diagonal) return p.T + p.S - 1;
  return (strides.row ? p.T : 1) * (strides.column ? p.S : 1);
}

inline int64_t bias_tasks(const Problem& p) {
  int64_t planes = p.bias_gradient_strides.head ? p.H : 1;
  for (int axis = 0; axis < p.batch_rank; ++axis)
    planes *= p.bias_gradient_strides.batch[axis] ? p.batch_shape[axis] : 1;
  return planes * bias_strips(p);
}

inline size_t bias_scratch(const Problem& p) { return head_scratch(p); }

inline void add_to_bias(const BackwardHead& h, Range keys, Range queries, float* plane) {
  const Operand& strides = h.p.bias_gradient_strides;
  for (int64_t t = queries.begin; t < least(queries.end, h.p.T); ++t)
    for (int64_t s = keys.begin; s < keys.end; ++s)
      plane[t * strides.row + s * strides.column] += h.slopes[(s - keys.begin) * kQueries + t - queries.begin];
}

template <class Number>
inline void add_head_to_bias(BackwardHead& h, int64_t head, Range keys, float* plane) {
  load_queries<Number>(h, head);
  for (int64_t s = keys.begin; s < keys.end; s += kKeyRows) {
    Range block = {s, least(s + kKeyRows, keys.end)};
    for (int64_t t = 0; t < h.T; t += kQueries) {
      Range queries = {t, least(t + kQueries, h.T)};
      if (compute_tile(h, block, queries)) add_to_bias(h, block, queries, plane);
    }
  }
}

template <class Number>
inline void bias_task(const Problem& p, int64_t task, float* memory) {
  const Operand& strides = p.bias_gradient_strides;
  int64_t strips = bias_strips(p), strip = task % strips, plane_at = task / strips * bias_plane(p);
  Range keys = strips == 1 ? Range{0, p.S} : Range{strip * kKeyRows, least((strip + 1) * kKeyRows, p.S)};
  float* plane = p.bias_gradient + plane_at;
  if (p.bias_is_diagonal) {
    std::memset(plane - (p.T - 1), 0, bias_plane(p) * sizeof(float));
  } else {
    for (int64_t t = 0; t < (strides.row ? p.T : 1); ++t)
      for (int64_t s = keys.begin; s < (strides.column ? keys.end : 1); ++s)
        plane[t * strides.row + s * strides.column] = 0;
  }
  for (int64_t example = 0; example < p.B; ++example)
    for (int64_t head = 0; head < p.H; ++head) {
      if (offset(strides, batch_index(p, example), p.batch_rank, head) != plane_at) continue;
      Scratch scratch = {memory};
      BackwardHead h = take_head(p, scratch, example, head / (p.H / p.K));
      h.of_bias = true;
      load_keys<Number>(h);
      add_head_to_bias<Number>(h, head, keys, plane);
    }
}

}  // namespace jaxattn::JAXATTN_ISA
