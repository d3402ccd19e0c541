// Convolution 3x3 and 1x1 as an implicit matrix product on tensor cores.
//
//   out[b,y,x,n] = sum over ky,kx,c of  x[b, y*stride-pad+ky, x*stride-pad+kx, c] * weight[n,ky,kx,c]
//                + bias[n] + table[index[b],n] + residual[b,y,x,n]           (NHWC, f32 sum, rounded once)
//
// As a product [m,n,k]: m = b*ho*wo pixels, n = o channels, k = taps*i. The matrix of patches [m,k] is never
// written: its rows are gathered from x on the way to shared memory.
//
// With upsample the grid has parts of the output, each of them such a product with 2x2 taps of its own: cuda/conv.cuh.
//
//   block (tile of m x n, part, split of k):
//     rows[r] = image and upper left corner of the patch of the part's pixel m0 + r
//     for each k tile of 64 (STAGES - 1 of them under way):
//       shared A[r, 64] <- x[corner of row r + tap, channels]     cp.async; zeros outside the map
//       shared B[r, 64] <- weight[n0 + r, tap, channels]          cp.async
//       each warp: accumulators += A fragment * B fragment        ldmatrix, mma.m16n8k16
//     one split:   accumulators -> shared -> + bias + table row + residual -> out
//     many splits: accumulators -> partial[split]; conv2d_reduce sums the splits in order
//
// Tricks
//   1. A k tile is a slice of 64 channels of one tap, and the taps of one slice follow each other: their
//      patches overlap, so that most gathers find their pixels in L1 (cp.async.ca) and spare L2.
//      Where 64 does not divide i, k runs as the weight lies in memory, and every thread keeps its own tap.
//   2. Chunks of 16 bytes are stored at chunk ^ (row % 8): neither cp.async nor ldmatrix has bank conflicts.
//   3. Fragments are loaded one step of 16 ahead, across the border of k tiles as well.
//   4. Stride and padding live in the corner.
//   5. The tiles of all output channels of the same pixels are neighbours in the grid: one of them brings the
//      pixels into L2, and the weights stay there.
//   6. Split k where the map is small (8x8, 16x16): 29 MB of weights need every SM to pull.
//
// SD 1.5 at 512x512, batch 2 (m, o, k): 8192x320x2880, 2048x640x5760, 512x1280x11520, 128x1280x23040;
// VAE decoder: 262144x128x1152, 262144x256x2304, 65536x512x4608. Which tile for which: src/gpu/conv.rs.
// Test: cargo test --release --test kernels conv2d        Bench: cargo bench --bench kernels conv2d
#include "conv.cuh"
#include "mma.cuh"

constexpr int BK = 64;               // elements of k in a tile
constexpr int ROW = BK * 2;          // bytes of a row of a tile
constexpr int STEPS = BK / 16;       // products in a tile
constexpr int PAD = 8;               // floats between rows of staged accumulators, against bank conflicts
constexpr int OUTSIDE = -32768;      // a coordinate that no tap brings into the map; coordinates are 16 bits wide

template <typename T, int N> __device__ __forceinline__ bool is_aligned(const Conv2dArgs& a) {
    uint64_t pointers = reinterpret_cast<uint64_t>(a.out) | reinterpret_cast<uint64_t>(a.bias) |
                        reinterpret_cast<uint64_t>(a.table) | reinterpret_cast<uint64_t>(a.residual);
    int counts = a.o | a.out_pitch | (a.table ? a.table_pitch : 0) | (a.residual ? a.residual_pitch : 0);
    return pointers % (N * sizeof(T)) == 0 && counts % N == 0;
}

// out[row, column ..] = v + bias + table row + residual
template <typename T, int N>
__device__ __forceinline__ void finish(const Conv2dArgs& a, int row, int column, float (&v)[N]) {
    auto add = [&](const void* from, int64_t offset) {
        auto u = *reinterpret_cast<const Vector<T, N>*>(static_cast<const T*>(from) + offset + column);
#pragma unroll
        for (int e = 0; e < N; e++) v[e] += to_float(u.v[e]);
    };
    if (a.bias) add(a.bias, 0);
    if (a.table) add(a.table, static_cast<int64_t>(a.index[row / (a.ho * a.wo)]) * a.table_pitch);
    if (a.residual) add(a.residual, static_cast<int64_t>(row) * a.residual_pitch);
    Vector<T, N> u;
#pragma unroll
    for (int e = 0; e < N; e++) u.v[e] = from_float<T>(v[e]);
    *reinterpret_cast<Vector<T, N>*>(static_cast<T*>(a.out) + static_cast<int64_t>(row) * a.out_pitch + column) = u;
}

// VEC elements per copy to shared memory: 8, or 4 where i or the pitch of x is no multiple of 8.
template <typename T, int BM, int BN, int WARPS_M, int WARPS_N, int STAGES, int VEC>
__device__ __forceinline__ void conv2d(const Conv2dArgs& a) {
    constexpr int THREADS = WARPS_M * WARPS_N * 32;
    constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;     // tile of a warp
    constexpr int MI = WM / 16, NI = WN / 8;                // fragments of a warp
    constexpr int CHUNKS = BK / VEC;                        // copies in a row
    constexpr int PASS = THREADS / CHUNKS;                  // rows copied at once
    constexpr int A_COPIES = BM / PASS, B_COPIES = BN / PASS;
    constexpr int STAGE = (BM + BN) * ROW;
    static_assert(BM % PASS == 0 && BN % PASS == 0 && PASS % 8 == 0, "copies keep their column and swizzle");
    static_assert(BM * (BN + PAD) * 4 <= STAGES * STAGE, "accumulators are staged in the pipeline's memory");

    extern __shared__ __align__(1024) unsigned char shared[];
    int2* rows = reinterpret_cast<int2*>(shared + STAGES * STAGE);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int warp_m = warp / WARPS_N * WM, warp_n = warp % WARPS_N * WN;
    const Part part = part_of(a, blockIdx.y);
    const int m = a.b * part.rows * part.columns;
    const int n_tiles = (a.o + BN - 1) / BN;
    const int m0 = blockIdx.x / n_tiles * BM, n0 = blockIdx.x % n_tiles * BN;
    if (m0 >= m) return;

    for (int r = thread; r < BM; r += THREADS) {
        int image = (m0 + r) / (part.rows * part.columns), pixel = (m0 + r) % (part.rows * part.columns);
        int y = m0 + r < m ? part.top(a, pixel / part.columns) : OUTSIDE, x = part.left(a, pixel % part.columns);
        rows[r] = make_int2(image * a.h * a.w, y << 16 | (x & 0xffff));
    }
    __syncthreads();

    // What this thread copies: chunk `thread % CHUNKS` of rows first_row + j * PASS, at position (tap, channel)
    // of the next k tile. Channels, pitches and k are counted in vectors from here on.
    const int taps = a.k * a.k, channels = a.i / VEC, pitch = a.x_pitch / VEC, k = taps * channels;
    const bool taps_inside = a.i % BK == 0;
    const int chunk = thread % CHUNKS, first_row = thread / CHUNKS;
    const int k_tiles = (k + CHUNKS - 1) / CHUNKS;
    const int k_begin = blockIdx.z * a.k_tiles_per_split;
    const int k_count = min(a.k_tiles_per_split, k_tiles - k_begin);
    int tap, channel;
    if (taps_inside) {
        tap = k_begin % taps;
        channel = k_begin / taps * CHUNKS + chunk;
    } else {
        tap = (k_begin * CHUNKS + chunk) / channels;
        channel = (k_begin * CHUNKS + chunk) % channels;
    }
    using Chunk = Vector<T, VEC>;
    const Chunk* const x = static_cast<const Chunk*>(a.x);
    const int weight_row = weight_taps(a) * channels;
    const Chunk* const weight = static_cast<const Chunk*>(a.weight) + static_cast<int64_t>(n0 + first_row) * weight_row;
    uint32_t b_inside = 0;
#pragma unroll
    for (int j = 0; j < B_COPIES; j++) b_inside |= (n0 + first_row + j * PASS < a.o ? 1u : 0u) << j;
    const uint32_t to = shared_address(shared) + first_row * ROW +
                        (VEC == 8 ? (chunk ^ first_row % 8) * 16 : (chunk / 2 ^ first_row % 8) * 16 + chunk % 2 * 8);

    uint32_t a_offset[A_COPIES], a_inside, b_offset;
    auto locate = [&] {
        const int ky = a.k == 3 ? tap * 11 >> 5 : tap >> 1, kx = tap - a.k * ky;
        a_inside = 0;
#pragma unroll
        for (int j = 0; j < A_COPIES; j++) {
            int2 row = rows[first_row + j * PASS];
            int iy = (row.y >> 16) + ky, ix = static_cast<int16_t>(row.y) + kx;
            bool inside = tap < taps && iy >= 0 && iy < a.h && ix >= 0 && ix < a.w;
            uint32_t pixel = row.x + iy * a.w + ix;
            a_offset[j] = inside ? pixel * pitch + channel : 0;
            a_inside |= (inside ? 1u : 0u) << j;
        }
        b_offset = (part.tap + ky * part.tap_y + kx * part.tap_x) * channels + channel;
        if (tap >= taps) b_inside = 0;
    };
    const int tap_step = taps_inside ? 1 : CHUNKS / channels, channel_step = taps_inside ? 0 : CHUNKS % channels;
    auto advance = [&] {
        tap += tap_step;
        channel += channel_step;
        const bool wraps = taps_inside ? tap == taps : channel >= channels;
        tap = wraps ? (taps_inside ? 0 : tap + 1) : tap;
        channel += wraps ? (taps_inside ? CHUNKS : -channels) : 0;
        locate();
    };
    // One of `parts` shares of the copies of a k tile.
    auto copy = [&](int slot, int part, int parts) {
#pragma unroll
        for (int j = 0; j < A_COPIES; j++) {
            if (j % parts != part) continue;
            uint32_t at = to + slot * STAGE + j * PASS * ROW;
            if (VEC == 8) cp_async_16_cached(at, x + a_offset[j], a_inside >> j & 1);
            else cp_async_8(at, x + a_offset[j], a_inside >> j & 1);
        }
#pragma unroll
        for (int j = 0; j < B_COPIES; j++) {
            if ((A_COPIES + j) % parts != part) continue;
            uint32_t at = to + slot * STAGE + (BM + j * PASS) * ROW;
            const Chunk* from = weight + b_offset + static_cast<int64_t>(j * PASS) * weight_row;
            if (VEC == 8) cp_async_16(at, from, b_inside >> j & 1);
            else cp_async_8(at, from, b_inside >> j & 1);
        }
    };

    locate();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < k_count) {
            copy(s, 0, 1);
            advance();
        }
        cp_async_commit();
    }

    // Rows of 128 bytes start at multiples of 128, so the step's chunk is an exclusive or on the address.
    const uint32_t a_from = shared_address(shared) + (warp_m + lane % 16) * ROW + (lane / 16 ^ lane % 8) * 16;
    const uint32_t b_from =
        shared_address(shared) + (BM + warp_n + lane / 16 * 8 + lane % 8) * ROW + (lane / 8 % 2 ^ lane % 8) * 16;
    uint32_t a_fragment[2][MI][4], b_fragment[2][NI][2];
    auto load_fragments = [&](int buffer, int slot, int step) {
        const uint32_t a_at = (a_from + slot * STAGE) ^ step * 32, b_at = (b_from + slot * STAGE) ^ step * 32;
#pragma unroll
        for (int mi = 0; mi < MI; mi++) ldmatrix_x4(a_fragment[buffer][mi], a_at + mi * 16 * ROW);
#pragma unroll
        for (int ni = 0; ni + 1 < NI; ni += 2) {
            uint32_t r[4];
            ldmatrix_x4(r, b_at + ni * 8 * ROW);
            b_fragment[buffer][ni][0] = r[0], b_fragment[buffer][ni][1] = r[1];
            b_fragment[buffer][ni + 1][0] = r[2], b_fragment[buffer][ni + 1][1] = r[3];
        }
        if (NI % 2) ldmatrix_x2(b_fragment[buffer][NI - 1][0], b_fragment[buffer][NI - 1][1], b_at + (NI - 1) * 8 * ROW);
    };

    float sum[MI][NI][4] = {};
    int read = 0, write = STAGES - 1;  // slots
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    load_fragments(0, 0, 0);
#pragma unroll 1
    for (int kt = 0; kt < k_count; kt++) {
        const bool more = kt + STAGES - 1 < k_count;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (step < STEPS - 1) {
                load_fragments((step + 1) % 2, read, step + 1);
                if (more) copy(write, step, STEPS - 1);
            } else {
                load_fragments(0, read, 0);
                advance();
            }
#pragma unroll
            for (int mi = 0; mi < MI; mi++)
#pragma unroll
                for (int ni = 0; ni < NI; ni++)
                    mma_16816(T(), sum[mi][ni], a_fragment[step % 2][mi], b_fragment[step % 2][ni][0],
                              b_fragment[step % 2][ni][1]);
            if (step == STEPS - 2) {
                // All fragments of this tile are in registers: its slot is free once everyone is here.
                cp_async_commit();
                cp_async_wait<STAGES - 2>();
                __syncthreads();
                read = read + 1 == STAGES ? 0 : read + 1;
                write = write + 1 == STAGES ? 0 : write + 1;
            }
        }
    }

    auto out_pixel = [&](int row) {
        if (!a.upsample) return row;
        const int pixels = part.rows * part.columns, pixel = row % pixels;
        return static_cast<int>(part.out(a, row / pixels, pixel / part.columns, pixel % part.columns));
    };
    const int g = lane / 4, q = lane % 4;
    if (a.splits > 1) {
        float* partial = a.partial + static_cast<int64_t>(blockIdx.z) * a.b * a.ho * a.wo * a.o;
#pragma unroll
        for (int mi = 0; mi < MI; mi++)
#pragma unroll
            for (int ni = 0; ni < NI; ni++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int row = m0 + warp_m + mi * 16 + g + h * 8, column = n0 + warp_n + ni * 8 + q * 2;
                    if (row >= m || column >= a.o) continue;
                    float* at = partial + static_cast<int64_t>(out_pixel(row)) * a.o + column;
                    if (a.o % 2 == 0) {
                        *reinterpret_cast<float2*>(at) = make_float2(sum[mi][ni][h * 2], sum[mi][ni][h * 2 + 1]);
                    } else {
                        at[0] = sum[mi][ni][h * 2];
                        if (column + 1 < a.o) at[1] = sum[mi][ni][h * 2 + 1];
                    }
                }
        return;
    }

    // Through shared memory, so that a thread holds 8 neighbouring channels.
    cp_async_wait<0>();
    __syncthreads();
    float* staged = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int mi = 0; mi < MI; mi++)
#pragma unroll
        for (int ni = 0; ni < NI; ni++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = warp_m + mi * 16 + g + h * 8, column = warp_n + ni * 8 + q * 2;
                *reinterpret_cast<float2*>(staged + row * (BN + PAD) + column) =
                    make_float2(sum[mi][ni][h * 2], sum[mi][ni][h * 2 + 1]);
            }
    __syncthreads();
    const bool aligned = is_aligned<T, 8>(a);
    for (int item = thread; item < BM * BN / 8; item += THREADS) {
        int row = item / (BN / 8), column = item % (BN / 8) * 8;
        if (m0 + row >= m || n0 + column >= a.o) continue;
        const float* from = staged + row * (BN + PAD) + column;
        const int pixel = out_pixel(m0 + row);
        if (aligned) {
            float v[8];
            *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(from);
            *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(from + 4);
            finish<T, 8>(a, pixel, n0 + column, v);
        } else {
            for (int e = 0; e < 8 && n0 + column + e < a.o; e++) {
                float v[1] = {from[e]};
                finish<T, 1>(a, pixel, n0 + column + e, v);
            }
        }
    }
}

// Sums the splits in their order, so that equal inputs give equal bytes; N channels at a time.
template <typename T, int N> __device__ __forceinline__ void reduce(const Conv2dArgs& a) {
    const int64_t size = static_cast<int64_t>(a.b) * a.ho * a.wo * a.o;
    const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N; at < size; at += threads * N) {
        float v[N] = {};
#pragma unroll 4
        for (int split = 0; split < a.splits; split++) {
            auto u = *reinterpret_cast<const Vector<float, N>*>(a.partial + split * size + at);
#pragma unroll
            for (int e = 0; e < N; e++) v[e] += u.v[e];
        }
        finish<T, N>(a, static_cast<int>(at / a.o), static_cast<int>(at % a.o), v);
    }
}
template <typename T> __device__ __forceinline__ void conv2d_reduce(const Conv2dArgs& a) {
    if (is_aligned<T, 4>(a)) reduce<T, 4>(a);
    else reduce<T, 1>(a);
}

// Contents: conv2d_{f16,bf16}_{tile}. Grid (tiles of m * tiles of n, parts, splits), threads 32 * warps, shared memory
// stages * (tile m + tile n) * 128 + tile m * 8 bytes.
#define CONV2D(NAME, BM, BN, WARPS_M, WARPS_N, STAGES, VEC, BLOCKS)             \
    extern "C" __global__ void __launch_bounds__(WARPS_M* WARPS_N * 32, BLOCKS) \
        conv2d_f16_##NAME(const __grid_constant__ Conv2dArgs a) {               \
        after_previous_kernel();                                                \
        conv2d<half, BM, BN, WARPS_M, WARPS_N, STAGES, VEC>(a);                 \
    }                                                                           \
    extern "C" __global__ void __launch_bounds__(WARPS_M* WARPS_N * 32, BLOCKS) \
        conv2d_bf16_##NAME(const __grid_constant__ Conv2dArgs a) {              \
        after_previous_kernel();                                                \
        conv2d<__nv_bfloat16, BM, BN, WARPS_M, WARPS_N, STAGES, VEC>(a);        \
    }
//     name      m    n    warps stages vector blocks per SM
CONV2D(256x128, 256, 128, 4, 2, 3, 8, 1)
CONV2D(128x160, 128, 160, 2, 4, 4, 8, 1)
CONV2D(128x128, 128, 128, 2, 2, 3, 8, 2)
CONV2D(64x160, 64, 160, 1, 4, 3, 8, 2)
CONV2D(128x64, 128, 64, 2, 2, 4, 8, 2)
CONV2D(64x64, 64, 64, 2, 2, 4, 8, 3)
CONV2D(128x32, 128, 32, 4, 1, 4, 8, 2)
CONV2D(64x64_i4, 64, 64, 2, 2, 3, 4, 2)

// Any grid; one thread per 4 channels is best.
extern "C" __global__ void conv2d_reduce_f16(const __grid_constant__ Conv2dArgs a) {
    after_previous_kernel();
    conv2d_reduce<half>(a);
}
extern "C" __global__ void conv2d_reduce_bf16(const __grid_constant__ Conv2dArgs a) {
    after_previous_kernel();
    conv2d_reduce<__nv_bfloat16>(a);
}
