// The kernels as XLA FFI calls. Buffers are dense and row-major, as jax.ffi passes them by default.
//
// Arguments: query, key, value, [context, largest, log_total, gradient, and that of the logsumexp if `has_lse_gradient`,]
// then those that attributes name: the bias, the bits of rows and of columns for dropout, and the arrays of the mask. The
// attribute `mask` holds four integers for each operation: its kind, its first array among the arguments after the
// others, and the size and the right of a window.
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <string>

#include "run.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxattn {
namespace {

class FfiPool final : public Pool {
 public:
  explicit FfiPool(ffi::ThreadPool pool) : pool_(pool) {}
  int64_t num_threads() const override { return pool_.num_threads(); }
  void schedule(std::function<void()> work) override { pool_.Schedule(std::move(work)); }

 private:
  ffi::ThreadPool pool_;
};

// An array whose axes are those of the batch, and then these, whose strides are fields of an operand.
Operand operand(const void* data, ffi::Span<const int64_t> shape, std::initializer_list<int64_t Operand::*> last_axes) {
  Operand array;
  array.data = static_cast<const char*>(data);
  int batch_rank = int(shape.size() - last_axes.size());
  int64_t step = 1;
  for (int axis = int(shape.size()) - 1; axis >= 0; --axis) {
    int64_t& stride = axis < batch_rank ? array.batch[axis] : array.*last_axes.begin()[axis - batch_rank];
    stride = shape[axis] == 1 ? 0 : step;
    step *= shape[axis];
  }
  return array;
}

Operand tokens(const ffi::AnyBuffer& buffer) {
  return operand(buffer.untyped_data(), buffer.dimensions(), {&Operand::row, &Operand::head, &Operand::column});
}
Operand entries(const ffi::AnyBuffer& buffer) {
  return operand(buffer.untyped_data(), buffer.dimensions(), {&Operand::head, &Operand::row, &Operand::column});
}
Operand rows(const ffi::AnyBuffer& buffer) {
  return operand(buffer.untyped_data(), buffer.dimensions(), {&Operand::head, &Operand::row});
}

// The same for one number for each diagonal (..., H, 1, T + S - 1), from entry (0, 0) on, which is at T - 1.
Operand diagonals(const ffi::AnyBuffer& buffer, int64_t T) {
  Operand array = entries(buffer);
  array.data += (T - 1) * int64_t(sizeof(float));
  array.row = -1, array.column = 1;
  return array;
}

Type type_of(ffi::DataType type) {
  if (type == ffi::BF16) return Type::kBFloat16;
  return type == ffi::F16 ? Type::kFloat16 : Type::kFloat32;
}

// Read everything but the results; `first` is the first argument after those of fixed place.
Problem problem_of(const ffi::RemainingArgs& args, size_t first, const ffi::Dictionary& attributes) {
  auto buffer = [&](size_t i) { return args.get<ffi::AnyBuffer>(i).value(); };
  auto number = [&](const char* name) { return attributes.get<float>(name).value(); };
  auto batch = attributes.get<ffi::Span<const int64_t>>("batch").value();
  auto mask = attributes.get<ffi::Span<const int64_t>>("mask").value();
  Problem p = {};
  auto query = buffer(0).dimensions(), key = buffer(1).dimensions(), value = buffer(2).dimensions();
  size_t rank = query.size();
  p.type = type_of(buffer(0).element_type());
  p.batch_rank = int(batch.size()), p.B = 1;
  for (int axis = 0; axis < p.batch_rank; ++axis) p.B *= p.batch_shape[axis] = batch[axis];
  p.T = query[rank - 3], p.H = query[rank - 2], p.D = query[rank - 1];
  p.S = key[rank - 3], p.K = key[rank - 2], p.Dv = value[rank - 1];
  p.query = tokens(buffer(0)), p.key = tokens(buffer(1)), p.value = tokens(buffer(2));
  p.rate = number("rate"), p.score_scale = number("score_scale");
  p.query_factor = number("query_factor"), p.key_factor = number("key_factor");
  p.keep_factor = number("keep_factor"), p.drop_below = uint32_t(attributes.get<int64_t>("drop_below").value());
  p.soft_cap = number("soft_cap"), p.bias_is_diagonal = attributes.get<int64_t>("has_diagonals").value();
  if (attributes.get<int64_t>("has_bias").value()) {
    p.bias = p.bias_is_diagonal ? diagonals(buffer(first), p.T) : entries(buffer(first));
    ++first;
  }
  if (p.drop_below) p.row_bits = entries(buffer(first++)), p.column_bits = entries(buffer(first++));
  p.mask_ops = int(mask.size() / 4), p.mask_is_range = true;
  for (int i = 0; i < p.mask_ops; ++i) {
    const int64_t* code = mask.begin() + 4 * i;
    MaskOp& op = p.mask[i];
    op.kind = MaskKind(code[0]), op.size = code[2], op.right = code[3];
    p.has_chunks |= op.kind == MaskKind::kChunked;
    bool pair = op.kind == MaskKind::kAnd || op.kind == MaskKind::kOr;
    if (!pair) op.first = entries(buffer(first + code[1]));
    if (op.kind == MaskKind::kSegments) op.second = entries(buffer(first + code[1] + 1));
    if (op.kind == MaskKind::kSegments || op.kind == MaskKind::kArray || op.kind == MaskKind::kOr)
      p.mask_is_range = false;
  }
  return p;
}

ffi::Error finished(bool enough_memory) {
  if (enough_memory) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxattn's native attention: out of memory");
}

// Run a call; no exception leaves it.
template <class Call>
ffi::Error guarded(Call call) {
  try {
    return finished(call());
  } catch (const std::bad_alloc&) {
    return finished(false);
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string("jaxattn's native attention: ") + error.what());
  }
}

template <class T = float>
T* result(const ffi::RemainingRets& results, size_t i) {
  return static_cast<T*>(results.get<ffi::AnyBuffer>(i).value()->untyped_data());
}

ffi::Error forward(ffi::ThreadPool threads, ffi::RemainingArgs args, ffi::RemainingRets results,
                   ffi::Dictionary attributes) {
  return guarded([&] {
    Problem p = problem_of(args, 3, attributes);
    p.context = result<char>(results, 0), p.largest = result(results, 1), p.log_total = result(results, 2);
    FfiPool pool(threads);
    return run_forward(pool, p);
  });
}

// The problem of a backward pass, with the residuals of the forward pass.
Problem backward_problem_of(const ffi::RemainingArgs& args, const ffi::Dictionary& attributes) {
  bool has_lse_gradient = attributes.get<int64_t>("has_lse_gradient").value();
  Problem p = problem_of(args, has_lse_gradient ? 8 : 7, attributes);
  if (has_lse_gradient) p.lse_gradient = rows(args.get<ffi::AnyBuffer>(7).value());
  p.context_in = tokens(args.get<ffi::AnyBuffer>(3).value());
  p.largest_in = rows(args.get<ffi::AnyBuffer>(4).value());
  p.log_total_in = rows(args.get<ffi::AnyBuffer>(5).value());
  p.gradient = tokens(args.get<ffi::AnyBuffer>(6).value());
  return p;
}

ffi::Error backward(ffi::ThreadPool threads, ffi::RemainingArgs args, ffi::RemainingRets results,
                    ffi::Dictionary attributes) {
  return guarded([&] {
    Problem p = backward_problem_of(args, attributes);
    p.query_gradient = result<char>(results, 0), p.key_gradient = result<char>(results, 1);
    p.value_gradient = result<char>(results, 2);
    FfiPool pool(threads);
    return run_backward(pool, p);
  });
}

ffi::Error bias_gradient(ffi::ThreadPool threads, ffi::RemainingArgs args, ffi::RemainingRets results,
                         ffi::Dictionary attributes) {
  return guarded([&] {
    Problem p = backward_problem_of(args, attributes);
    auto buffer = results.get<ffi::AnyBuffer>(0).value();
    p.bias_gradient_strides = p.bias_is_diagonal ? diagonals(*buffer, p.T) : entries(*buffer);
    p.bias_gradient = result(results, 0) + (p.bias_is_diagonal ? p.T - 1 : 0);
    FfiPool pool(threads);
    return run_bias(pool, p);
  });
}

#define JAXATTN_BINDING ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs()

}  // namespace

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxattn_forward, forward, JAXATTN_BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxattn_backward, backward, JAXATTN_BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxattn_bias_gradient, bias_gradient, JAXATTN_BINDING);

}  // namespace jaxattn

extern "C" const char* jaxattn_instruction_set() { return jaxattn::kernels().name; }

#pragma GCC visibility pop
