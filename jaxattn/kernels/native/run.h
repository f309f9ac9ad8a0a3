// From a checked problem to its results, on a pool of threads.
#pragma once

#include "parallel.h"
#include "problem.h"

namespace jaxattn {

// The kernels for this processor: the best instruction set that it has and this library was compiled for.
const Kernels& kernels();

// All return whether there was enough memory.
bool run_forward(Pool& pool, Problem& problem);
bool run_backward(Pool& pool, Problem& problem);
bool run_bias(Pool& pool, Problem& problem);

}  // namespace jaxattn
