// The oracle: convolution, linear layer and attention as their formulas say, one thread per output (attention:
// one warp per query), f32 sums, any dtype and any shape. The fast kernels are tested against it, and
// convolution and attention of `--dtype f32` run on it.
//
//   conv2d      (upsample: see cuda/conv.cuh)
//               out[b,y,x,n] = sum x[b, y*stride-pad+ky, x*stride-pad+kx, c] * weight[n,ky,kx,c]
//                              + bias[n] + table[index[b],n] + residual[b,y,x,n]
//   linear      out[m,n] = sum x[m,k] * weight[n,k] + bias[n] + residual[m,n]
//   attention   out[t] = softmax(q[t] . k * scale) . v, for each image and head
//
// The two products stage 16x16 tiles of both factors in shared memory; attention keeps a running maximum.
// Test: cargo test --release --test kernels naive
#include "common.cuh"
#include "conv.cuh"

constexpr int TILE = 16;  // a block is TILE x TILE threads and as many outputs, threadIdx.x along n

// sum + a . b over n elements. Each thread names the row of a and of b that it stages (null: zeros), those of
// index threadIdx.y in their tiles; the sum is that of a's row threadIdx.y and b's row threadIdx.x.
template <typename T> __device__ float tile_dot(const T* a, const T* b, int n, float sum) {
    __shared__ float tile_a[TILE][TILE + 1], tile_b[TILE][TILE + 1];
    for (int start = 0; start < n; start += TILE) {
        int e = start + threadIdx.x;
        tile_a[threadIdx.y][threadIdx.x] = a && e < n ? to_float(a[e]) : 0.f;
        tile_b[threadIdx.y][threadIdx.x] = b && e < n ? to_float(b[e]) : 0.f;
        __syncthreads();
#pragma unroll
        for (int j = 0; j < TILE; j++) sum += tile_a[threadIdx.y][j] * tile_b[threadIdx.x][j];
        __syncthreads();
    }
    return sum;
}

// Grid (m / TILE, n / TILE, parts), rounded up; no part has more than m pixels.
template <typename T> __device__ void conv2d_naive(const Conv2dArgs& a) {
    const Part part = part_of(a, blockIdx.z);
    const int m = a.b * part.rows * part.columns;
    if (blockIdx.x * TILE >= m) return;
    const int row = blockIdx.x * TILE + threadIdx.y, n0 = blockIdx.y * TILE, n = n0 + threadIdx.x;
    const int image = row / (part.rows * part.columns), y = row / part.columns % part.rows, x = row % part.columns;
    float sum = 0.f;
    for (int tap = 0; tap < a.k * a.k; tap++) {
        const int ky = tap / a.k, kx = tap % a.k, iy = part.top(a, y) + ky, ix = part.left(a, x) + kx;
        const T *from = nullptr, *weight = nullptr;
        if (row < m && iy >= 0 && iy < a.h && ix >= 0 && ix < a.w)
            from = static_cast<const T*>(a.x) + ((static_cast<int64_t>(image) * a.h + iy) * a.w + ix) * a.x_pitch;
        if (n0 + threadIdx.y < a.o) {
            int64_t at = static_cast<int64_t>(n0 + threadIdx.y) * weight_taps(a);
            weight = static_cast<const T*>(a.weight) + (at + part.tap + ky * part.tap_y + kx * part.tap_x) * a.i;
        }
        sum = tile_dot(from, weight, a.i, sum);
    }
    if (row >= m || n >= a.o) return;
    const int64_t pixel = part.out(a, image, y, x);
    auto at = [](const void* base, int64_t row, int pitch, int column) {
        return to_float(static_cast<const T*>(base)[row * pitch + column]);
    };
    if (a.bias) sum += at(a.bias, 0, 0, n);
    if (a.table) sum += at(a.table, a.index[image], a.table_pitch, n);
    if (a.residual) sum += at(a.residual, pixel, a.residual_pitch, n);
    static_cast<T*>(a.out)[pixel * a.out_pitch + n] = from_float<T>(sum);
}

// Grid (m / TILE, n / TILE), rounded up.
template <typename T> __device__ void linear_naive(const LinearArgs& a) {
    const int row = blockIdx.x * TILE + threadIdx.y, n0 = blockIdx.y * TILE, n = n0 + threadIdx.x;
    const T *x = nullptr, *weight = nullptr;
    if (row < a.m) x = static_cast<const T*>(a.x) + static_cast<int64_t>(row) * a.x_pitch;
    if (n0 + threadIdx.y < a.n) weight = static_cast<const T*>(a.weight) + static_cast<int64_t>(n0 + threadIdx.y) * a.k;
    float sum = tile_dot(x, weight, a.k, 0.f);
    if (row >= a.m || n >= a.n) return;
    if (a.bias) sum += to_float(static_cast<const T*>(a.bias)[n]);
    if (a.residual) sum += to_float(static_cast<const T*>(a.residual)[static_cast<int64_t>(row) * a.residual_pitch + n]);
    static_cast<T*>(a.out)[static_cast<int64_t>(row) * a.out_pitch + n] = from_float<T>(sum);
}

constexpr int QUERIES = 8;  // warps of a block, one query each
constexpr int KEYS = 32;    // a lane per key for the scores, a lane per dimension for the values

// Grid (t / QUERIES rounded up, heads, b), 32 * QUERIES threads, dynamic shared memory QUERIES * d * 8 bytes.
template <typename T> __device__ void attention_naive(const AttentionArgs& a) {
    extern __shared__ float rows[];
    __shared__ float keys[KEYS][KEYS + 1], weights[QUERIES][KEYS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int query = blockIdx.x * QUERIES + warp, head = blockIdx.y, image = blockIdx.z;
    const bool present = query < a.t;
    const Keys of_image = keys_of(a, image);
    const int existing = of_image.count;
    float* q = rows + warp * 2 * a.d;
    float* sum = q + a.d;
    auto at = [&](const void* base, int64_t row, int pitch) {
        return static_cast<const T*>(base) + row * pitch + head * a.d;
    };
    for (int e = lane; e < a.d; e += 32) {
        q[e] = present ? to_float(at(a.q, static_cast<int64_t>(image) * a.t + query, a.q_pitch)[e]) * a.scale : 0.f;
        sum[e] = 0.f;
    }
    __syncwarp();

    // The block's last query sees the most keys.
    const int visible = a.causal ? min(existing, static_cast<int>(blockIdx.x + 1) * QUERIES) : existing;
    float maximum = -INFINITY, total = 0.f;
    for (int start = 0; start < visible; start += KEYS) {
        const int64_t first = static_cast<int64_t>(of_image.first) + start;
        float score = 0.f;
        for (int from = 0; from < a.d; from += KEYS) {
            __syncthreads();
            for (int key = warp; key < KEYS; key += QUERIES) {
                const bool inside = start + key < existing && from + lane < a.d;
                keys[key][lane] = inside ? to_float(at(a.k, first + key, a.k_pitch)[from + lane]) : 0.f;
            }
            __syncthreads();
            for (int e = 0; e < min(KEYS, a.d - from); e++) score += q[from + e] * keys[lane][e];
        }
        if (start + lane >= existing || (a.causal && start + lane > query)) score = -INFINITY;

        // Key 0 is visible to every query, so the maximum is finite from the first tile on.
        float larger = fmaxf(maximum, warp_max(score)), rescale = expf(maximum - larger), weight = expf(score - larger);
        maximum = larger;
        total = total * rescale + warp_sum(weight);
        weights[warp][lane] = weight;
        __syncwarp();
        for (int e = lane; e < a.d; e += 32) {
            float s = sum[e] * rescale;
            for (int key = 0; key < min(KEYS, existing - start); key++)
                s += weights[warp][key] * to_float(at(a.v, first + key, a.v_pitch)[e]);
            sum[e] = s;
        }
        __syncwarp();
    }
    if (!present) return;
    T* out = static_cast<T*>(a.out) + (static_cast<int64_t>(image) * a.t + query) * a.out_pitch + head * a.d;
    for (int e = lane; e < a.d; e += 32) out[e] = from_float<T>(sum[e] / total);
}

// Contents: {conv2d,linear,attention}_naive_{f16,bf16,f32}
#define NAIVE(SUFFIX, T)                                                    \
    extern "C" __global__ void __launch_bounds__(TILE* TILE)                \
        conv2d_naive_##SUFFIX(const __grid_constant__ Conv2dArgs a) {       \
        after_previous_kernel();                                            \
        conv2d_naive<T>(a);                                                 \
    }                                                                       \
    extern "C" __global__ void __launch_bounds__(TILE* TILE)                \
        linear_naive_##SUFFIX(const __grid_constant__ LinearArgs a) {       \
        after_previous_kernel();                                            \
        linear_naive<T>(a);                                                 \
    }                                                                       \
    extern "C" __global__ void __launch_bounds__(QUERIES * 32, 4)           \
        attention_naive_##SUFFIX(const __grid_constant__ AttentionArgs a) { \
        after_previous_kernel();                                            \
        attention_naive<T>(a);                                              \
    }
NAIVE(f16, half)
NAIVE(bf16, __nv_bfloat16)
NAIVE(f32, float)
