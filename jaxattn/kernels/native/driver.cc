// Runs the kernels without JAX, on a pool of its own threads: for sanitizers and for processors under emulation.
//
//   driver            compares random calls with a plain computation in double
//   driver B T H D    times a causal call, forward and backward
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "run.h"

namespace {

using jaxattn::MaskKind;
using jaxattn::Operand;
using jaxattn::Problem;

class ThreadPool final : public jaxattn::Pool {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~ThreadPool() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
    }
    changed_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int64_t num_threads() const override { return int64_t(threads_.size()) + 1; }
  void schedule(std::function<void()> work) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(work));
    }
    changed_.notify_one();
  }

 private:
  void work() {
    for (;;) {
      std::function<void()> next;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return done_ || !queue_.empty(); });
        if (queue_.empty()) return;
        next = std::move(queue_.front());
        queue_.pop_front();
      }
      next();
    }
  }
  std::vector<std::thread> threads_;
  std::deque<std::function<void()>> queue_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
};

struct Sizes {
  int64_t B, T, S, H, K, D, Dv;
};

Operand tokens(const void* data, int64_t n, int64_t heads, int64_t width) {
  Operand array;
  array.data = static_cast<const char*>(data);
  array.batch[0] = n * heads * width, array.row = heads * width, array.head = width, array.column = 1;
  return array;
}

// A call with all its arrays; masks are causal (with an offset), a window, lengths, segments or chunks.
struct Call {
  Sizes n;
  Problem p = {};
  std::vector<float> query, key, value, gradient, bias, context, largest, log_total, of_query, of_key, of_value, of_bias;
  std::vector<float> of_lse;
  std::vector<int32_t> offset, ids, key_ids, row_bits, column_bits;
  MaskKind kind;
  float scale;

  Call(Sizes sizes, MaskKind kind, int options, unsigned seed) : n(sizes), kind(kind) {
    bool biased = options & 1, dropped = options & 2, capped = options & 4, diagonal = options & 8;
    std::mt19937 random(seed);
    auto draw = [&](std::vector<float>& array, int64_t size) {
      std::normal_distribution<float> normal;
      array.resize(size);
      for (float& x : array) x = normal(random);
    };
    draw(query, n.B * n.T * n.H * n.D), draw(key, n.B * n.S * n.K * n.D), draw(value, n.B * n.S * n.K * n.Dv);
    draw(gradient, n.B * n.T * n.H * n.Dv);
    context.resize(gradient.size()), largest.resize(n.B * n.H * n.T), log_total.resize(n.B * n.H * n.T);
    of_query.resize(query.size()), of_key.resize(key.size()), of_value.resize(value.size());
    p.type = jaxattn::Type::kFloat32, p.batch_rank = 1, p.batch_shape[0] = n.B;
    p.B = n.B, p.T = n.T, p.S = n.S, p.H = n.H, p.K = n.K, p.D = n.D, p.Dv = n.Dv;
    scale = 1 / std::sqrt(float(n.D)), p.keep_factor = 1;
    p.soft_cap = capped ? 1.5f : 0;
    p.rate = 1.44269504f * (biased || capped ? 1 : scale), p.score_scale = p.query_factor = p.key_factor = scale;
    p.query = tokens(query.data(), n.T, n.H, n.D), p.key = tokens(key.data(), n.S, n.K, n.D);
    p.value = tokens(value.data(), n.S, n.K, n.Dv), p.gradient = tokens(gradient.data(), n.T, n.H, n.Dv);
    p.context_in = tokens(context.data(), n.T, n.H, n.Dv);
    p.context = reinterpret_cast<char*>(context.data()), p.largest = largest.data(), p.log_total = log_total.data();
    p.largest_in.data = reinterpret_cast<char*>(largest.data());
    p.largest_in.batch[0] = n.H * n.T, p.largest_in.head = n.T, p.largest_in.row = 1;
    p.log_total_in = p.largest_in, p.log_total_in.data = reinterpret_cast<char*>(log_total.data());
    p.query_gradient = reinterpret_cast<char*>(of_query.data());
    p.key_gradient = reinterpret_cast<char*>(of_key.data());
    p.value_gradient = reinterpret_cast<char*>(of_value.data());
    if (biased) {
      p.bias_is_diagonal = diagonal;
      draw(bias, n.H * (diagonal ? n.T + n.S - 1 : n.T * n.S));
      of_bias.resize(bias.size());
      p.bias.data = reinterpret_cast<char*>(bias.data());
      p.bias.head = n.T * n.S, p.bias.row = n.S, p.bias.column = 1;
      p.bias_gradient = of_bias.data();
      if (diagonal) {
        p.bias.data += (n.T - 1) * sizeof(float), p.bias_gradient += n.T - 1;
        p.bias.head = n.T + n.S - 1, p.bias.row = -1;
      }
      p.bias_gradient_strides = p.bias;
    }
    if (capped) {
      draw(of_lse, n.B * n.H * n.T);
      p.lse_gradient = p.largest_in, p.lse_gradient.data = reinterpret_cast<char*>(of_lse.data());
    }
    if (dropped) {
      row_bits.resize(n.B * n.H * n.T), column_bits.resize(n.S);
      for (auto* bits : {&row_bits, &column_bits})
        for (int32_t& x : *bits) x = int32_t(random());
      p.drop_below = 1u << 30, p.keep_factor = 4.0f / 3;
      p.row_bits.data = reinterpret_cast<char*>(row_bits.data());
      p.row_bits.batch[0] = n.H * n.T, p.row_bits.head = n.T, p.row_bits.row = 1;
      p.column_bits.data = reinterpret_cast<char*>(column_bits.data()), p.column_bits.column = 1;
    }
    offset.resize(n.B);
    for (int32_t& x : offset) x = kind == MaskKind::kLengths ? int32_t(random() % (n.S + 1)) : int32_t(n.S - n.T);
    ids.resize(n.T), key_ids.resize(n.S);
    for (int64_t t = 0; t < n.T; ++t) ids[t] = int32_t(4 * t / n.T);
    for (int64_t s = 0; s < n.S; ++s) key_ids[s] = int32_t(4 * s / n.S);
    p.mask_ops = 1, p.mask_is_range = kind != MaskKind::kSegments;
    p.has_chunks = kind == MaskKind::kChunked;
    p.mask[0].kind = kind, p.mask[0].size = 37, p.mask[0].right = kind == MaskKind::kWindow && capped ? 5 : 0;
    p.mask[0].first.data = reinterpret_cast<char*>(offset.data()), p.mask[0].first.batch[0] = n.B == 1 ? 0 : 1;
    if (kind == MaskKind::kSegments) {
      p.mask[0].first = {}, p.mask[0].first.data = reinterpret_cast<char*>(ids.data()), p.mask[0].first.row = 1;
      p.mask[0].second.data = reinterpret_cast<char*>(key_ids.data()), p.mask[0].second.column = 1;
    }
  }

  bool allowed(int64_t b, int64_t t, int64_t s) const {
    if (kind == MaskKind::kSegments) return ids[t] == key_ids[s];
    if (kind == MaskKind::kLengths) return s < offset[b];
    int64_t distance = s - t - offset[b];
    if (kind == MaskKind::kChunked) {
      int64_t position = t + offset[b];
      return (position < 0 ? (position - 36) / 37 : position / 37) == s / 37;
    }
    return distance <= p.mask[0].right && (kind == MaskKind::kCausal || distance > -37);
  }

  int64_t bias_at(int64_t h, int64_t t, int64_t s) const {
    return p.bias_is_diagonal ? h * (n.T + n.S - 1) + s - t + n.T - 1 : (h * n.T + t) * n.S + s;
  }

  double factor(int64_t b, int64_t h, int64_t t, int64_t s) const {
    if (!p.drop_below) return 1;
    uint32_t bits = uint32_t(row_bits[(b * n.H + h) * n.T + t]) ^ uint32_t(column_bits[s]);
    bits = (bits ^ (bits >> 16)) * 0x7FEB352Du;
    bits = (bits ^ (bits >> 15)) * 0x846CA68Bu;
    return (bits ^ (bits >> 16)) >= p.drop_below ? p.keep_factor : 0;
  }

  // The largest difference from the same in double, over results and gradients.
  double error() const {
    std::vector<double> of_query64(query.size()), of_key64(key.size()), of_value64(value.size());
    std::vector<double> of_bias64(bias.size());
    double worst = 0;
    auto dot = [](const float* a, const float* b, int64_t n) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += double(a[i]) * b[i];
      return sum;
    };
    for (int64_t b = 0; b < n.B; ++b)
      for (int64_t h = 0; h < n.H; ++h)
        for (int64_t t = 0; t < n.T; ++t) {
          int64_t k = h / (n.H / n.K);
          const float* q = &query[((b * n.T + t) * n.H + h) * n.D];
          const float* g = &gradient[((b * n.T + t) * n.H + h) * n.Dv];
          std::vector<double> weights(n.S), output(n.Dv), of_weights(n.S), of_cap(n.S, 1);
          double total = 0, delta = 0;
          for (int64_t s = 0; s < n.S; ++s) {
            double score = scale * dot(q, &key[((b * n.S + s) * n.K + k) * n.D], n.D);
            if (p.soft_cap > 0) {
              double value = std::tanh(score / p.soft_cap);
              score = value * p.soft_cap, of_cap[s] = 1 - value * value;
            }
            if (p.bias.data) score += bias[bias_at(h, t, s)];
            weights[s] = allowed(b, t, s) ? std::exp(score) : 0;
            total += weights[s];
          }
          for (int64_t s = 0; s < n.S; ++s) {
            const float* v = &value[((b * n.S + s) * n.K + k) * n.Dv];
            weights[s] = total > 0 ? weights[s] / total : 0;
            double kept = weights[s] * factor(b, h, t, s);
            of_weights[s] = dot(g, v, n.Dv) * factor(b, h, t, s);
            delta += weights[s] * of_weights[s];
            for (int64_t i = 0; i < n.Dv; ++i) {
              output[i] += kept * v[i];
              of_value64[((b * n.S + s) * n.K + k) * n.Dv + i] += kept * g[i];
            }
          }
          if (p.lse_gradient.data) delta -= of_lse[(b * n.H + h) * n.T + t];
          for (int64_t s = 0; s < n.S; ++s) {
            double slope = weights[s] * (of_weights[s] - delta);
            if (p.bias.data) of_bias64[bias_at(h, t, s)] += slope;
            slope *= of_cap[s];
            for (int64_t i = 0; i < n.D; ++i) {
              int64_t at = ((b * n.S + s) * n.K + k) * n.D + i;
              of_query64[((b * n.T + t) * n.H + h) * n.D + i] += slope * scale * key[at];
              of_key64[at] += slope * scale * q[i];
            }
          }
          for (int64_t i = 0; i < n.Dv; ++i)
            worst = std::fmax(worst, std::fabs(output[i] - context[((b * n.T + t) * n.H + h) * n.Dv + i]));
        }
    auto compare = [&](const std::vector<double>& expected, const std::vector<float>& came) {
      for (size_t i = 0; i < expected.size(); ++i) worst = std::fmax(worst, std::fabs(expected[i] - came[i]));
    };
    compare(of_query64, of_query), compare(of_key64, of_key), compare(of_value64, of_value);
    if (p.bias.data) compare(of_bias64, of_bias);
    return worst;
  }
};

bool run_all(jaxattn::Pool& pool, Call& call) {
  bool enough = run_forward(pool, call.p) && run_backward(pool, call.p);
  return enough && (!call.p.bias.data || run_bias(pool, call.p));
}

#ifdef __SANITIZE_THREAD__
constexpr unsigned kStride = 5;  // ThreadSanitizer is slow, and cases differ little in what threads share
#else
constexpr unsigned kStride = 1;
#endif

int check() {
  ThreadPool pool(3);
  int failed = 0, passed = 0;
  // Options are bits: a bias, dropout, a soft cap with a gradient of the logsumexp, and a bias by distance.
  const Sizes sizes[] = {{1, 1, 1, 1, 1, 1, 1},     {2, 130, 70, 4, 2, 12, 20}, {1, 300, 300, 2, 2, 64, 64},
                         {2, 3, 700, 4, 1, 16, 16}, {1, 65, 257, 3, 3, 33, 5},  {1, 129, 300, 6, 2, 80, 96}};
  unsigned seed = 0;
  for (const Sizes& n : sizes)
    for (MaskKind kind : {MaskKind::kCausal, MaskKind::kWindow, MaskKind::kLengths, MaskKind::kSegments, MaskKind::kChunked})
      for (int options = 0; options < 16; ++options) {
        if ((options & 8) && !(options & 1)) continue;
        if (++seed % kStride) continue;
        Call call(n, kind, options, seed);
        bool enough = run_all(pool, call);
        double error = call.error();
        bool ok = enough && error < (options & 8 ? 1e-3 : 2e-4);  // diagonals add up many numbers
        ok ? ++passed : ++failed;
        if (!ok) std::printf("T=%ld S=%ld D=%ld mask %d options %d: off by %g\n", long(n.T), long(n.S), long(n.D), int(kind), options, error);
      }
  std::printf("%s: %d passed, %d failed\n", jaxattn::kernels().name, passed, failed);
  return failed != 0;
}

template <class Run>
double shortest_ms(Run run) {
  double best = 1e30;
  auto started = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - started < std::chrono::seconds(2)) {
    auto before = std::chrono::steady_clock::now();
    run();
    best = std::fmin(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - before).count());
  }
  return best;
}

int time_causal(Sizes n) {
  const char* threads = std::getenv("THREADS");
  ThreadPool pool(threads ? std::atoi(threads) - 1 : 1);
  const char* options = std::getenv("OPTIONS");
  Call call(n, MaskKind::kCausal, options ? std::atoi(options) : 0, 0);
  double entries = double(n.B) * n.H * n.T * (n.T + 1) / 2;
  double forward = shortest_ms([&] { run_forward(pool, call.p); });
  double backward = shortest_ms([&] { run_backward(pool, call.p); });
  std::printf("%s forward %.3f ms, %.0f GFLOP/s; backward %.3f ms, %.0f GFLOP/s\n", jaxattn::kernels().name, forward,
              entries * 2 * (n.D + n.Dv) / forward / 1e6, backward, entries * 2 * (3 * n.D + 2 * n.Dv) / backward / 1e6);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) return check();
  int64_t B = std::atoll(arguments[1]), T = std::atoll(arguments[2]), H = std::atoll(arguments[3]);
  int64_t D = std::atoll(arguments[4]);
  return time_causal({B, T, T, H, H, D, D});
}
