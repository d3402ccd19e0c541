// out[b,t,j*d..] = softmax(q k^T * scale) v for each image and head j, scale = 1/sqrt(d); f32 softmax and sums.
//
// Layout: tokens by rows with a pitch, head j in columns j*d .. (j+1)*d, so q, k, v may be slices of one fused
// buffer. Pointers are 16-byte aligned; pitches and d are multiples of 8. Any t >= 1, any s >= 1. Images may have ranges
// of one table of keys, of different lengths (first_key).
//
// Flash attention 2: no [t,s] matrix in memory, one pass over the keys with a running maximum and sum a row.
//   for each tile of KEYS keys:                      (K and V arrive by cp.async while the last tile computes)
//     S = q k^T                                      (tensor cores; q stays in registers)
//     new_max = max(max, rowmax(S)); keep = 2^(c*(max - new_max)); P = 2^(c*(S - new_max)), c = scale*log2(e)
//     sum = sum*keep + rowsum(P); O = O*keep + P v   (tensor cores; P's C fragments are the next A fragments)
//   out = O / sum
// Masked keys score -inf; key 0 is never masked, so every maximum is finite after the first tile.
//
// 1. A warp owns MT*16 query rows and all KEYS keys of a tile: nothing crosses warps, one barrier a tile. MT = 2
//    halves the shared-memory reads a product needs, which is what bounds narrow heads; MT = 1 fills small grids.
// 2. d = 40 pads to 48 only where the inner dimension must be a multiple of 16 (S); P v has exactly 5 column tiles.
// 3. Shared rows are an odd number of 16-byte chunks, or XOR-swizzled: ldmatrix never meets a bank conflict.
//
// attention_wide (the VAE's one head of 512, anything above 160): 32 queries do not fit one warp's registers at
// this width, so 8 warps split d. Each computes the S of its 64 columns, the 8 partial S are added in shared
// memory in a fixed order, 8 threads a row do the softmax, and each warp multiplies P by its 64 columns of V.
//
// Stable Diffusion 1.5 at 512x512: self t=s=4096 d=40, 1024 d=80, 256 d=160, 64 d=160 (8 heads); cross s=77;
// CLIP t=s=77 d=64 causal (12 heads); VAE t=s=4096 d=512 (1 head).
//
// Test: cargo test --release --test kernels attention. Bench: cargo bench --bench kernels attention.
// Which kernel and what launch: AttentionPlan in src/gpu/attention.rs.
#include "mma.cuh"
#include "softmax.cuh"


// Tiles in shared memory are rows of STRIDE 16-byte chunks. Eight rows at one chunk column fall into eight
// different bank groups: an odd stride sees to it alone, an even one (a multiple of 8) by swizzling.
template <int STRIDE> __device__ __forceinline__ int tile_bytes(int row, int chunk) {
    static_assert(STRIDE % 2 == 1 || STRIDE % 8 == 0, "bank conflicts");
    return (row * STRIDE + (STRIDE % 2 ? chunk : chunk ^ (row & 7))) * 16;
}

// Copies a matrix of `rows` rows and `chunks` chunks, ROWS rows at a time, into tiles of ROWS x CHUNKS chunks; what
// lies beyond the matrix becomes zero. A thread keeps its column: a power of two of lanes a row, some of them idle.
template <typename T, int ROWS, int CHUNKS, int STRIDE, int THREADS> struct TileCopy {
    static constexpr int LANES = CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : CHUNKS <= 32 ? 32 : 64;
    static constexpr int STEP = THREADS / LANES;
    static_assert(CHUNKS <= LANES && ROWS % STEP == 0, "whole passes");

    const T* from;  // this thread's first chunk of the next tile
    int pitch;
    int rows;  // left for this thread, counted from its first row; 0 where it only writes zeros

    __device__ __forceinline__ TileCopy(const T* matrix, int pitch, int rows, int chunks) : pitch(pitch) {
        const int row = threadIdx.x / LANES, chunk = threadIdx.x % LANES;
        from = matrix + size_t(row) * pitch + chunk * 8;
        this->rows = chunk < chunks ? rows - row : 0;
    }
    // Starts the next tile's copy; the caller commits it.
    __device__ __forceinline__ void next(uint32_t to) {
        const int row = threadIdx.x / LANES, chunk = threadIdx.x % LANES;
        if (chunk < CHUNKS) {
#pragma unroll
            for (int i = 0; i < ROWS; i += STEP)
                cp_async_16(to + tile_bytes<STRIDE>(row + i, chunk), from + size_t(i) * pitch, i < rows);
        }
        from += size_t(ROWS) * pitch;
        rows -= ROWS;
    }
};

// A fragments of 16 rows x 16*STEPS columns straight from global memory (once a block): zeros outside.
template <typename T, int STEPS>
__device__ __forceinline__ void load_q(uint32_t (&q)[STEPS][4], const T* from, int pitch, int rows, int columns) {
    const int g = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int k = 0; k < STEPS; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = g + i % 2 * 8, c = k * 16 + i / 2 * 8 + column;
            const T* pair = from + size_t(row) * pitch + c;
            q[k][i] = row < rows && c < columns ? *reinterpret_cast<const uint32_t*>(pair) : 0;
        }
}

// Block (x, y, z): queries x*WARPS*MT*16 .. of head y of image z. D: the widest d, a multiple of 8.
template <typename T, int D, int WARPS, int MT, int KEYS>
__device__ __forceinline__ void attention(const AttentionArgs& a) {
    constexpr int THREADS = WARPS * 32;
    constexpr int K_STEPS = (D + 15) / 16, S_TILES = KEYS / 8, V_TILES = D / 8;
    constexpr int K_CHUNKS = K_STEPS * 2, K_STRIDE = K_CHUNKS | 1, V_STRIDE = V_TILES | 1;
    constexpr int K_BYTES = KEYS * K_STRIDE * 16, STAGE_BYTES = K_BYTES + KEYS * V_STRIDE * 16;
    extern __shared__ uint4 shared[];  // two stages of K [KEYS,D] then V [KEYS,D]
    const Keys of_image = keys_of(a, blockIdx.z);
    const int existing = of_image.count;
    if (existing < a.fewest_keys) return;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int block_row = blockIdx.x * WARPS * MT * 16, row0 = block_row + warp * MT * 16;
    const int head = blockIdx.y * a.d;
    const T* q = static_cast<const T*>(a.q) + size_t(blockIdx.z) * a.t * a.q_pitch + head;
    const T* k = static_cast<const T*>(a.k) + of_image.first * a.k_pitch + head;
    const T* v = static_cast<const T*>(a.v) + of_image.first * a.v_pitch + head;
    T* out = static_cast<T*>(a.out) + size_t(blockIdx.z) * a.t * a.out_pitch + head;

    const uint32_t stage0 = shared_address(shared);
    const int keys = a.causal ? min(existing, block_row + WARPS * MT * 16) : existing;
    const int tiles = (keys + KEYS - 1) / KEYS;
    TileCopy<T, KEYS, K_CHUNKS, K_STRIDE, THREADS> k_copy(k, a.k_pitch, existing, a.d / 8);
    TileCopy<T, KEYS, V_TILES, V_STRIDE, THREADS> v_copy(v, a.v_pitch, existing, a.d / 8);
    auto load = [&](int tile) {
        k_copy.next(stage0 + tile % 2 * STAGE_BYTES);
        v_copy.next(stage0 + tile % 2 * STAGE_BYTES + K_BYTES);
        cp_async_commit();
    };
    load(0);

    uint32_t q_fragments[MT][K_STEPS][4];
#pragma unroll
    for (int m = 0; m < MT; m++)
        load_q<T>(q_fragments[m], q + size_t(row0 + m * 16) * a.q_pitch, a.q_pitch, a.t - row0 - m * 16, a.d);

    // What this lane passes to ldmatrix: of K two key tiles at one k16 step, of V one k16 step at two column tiles.
    const int k_lane = tile_bytes<K_STRIDE>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const int v_lane = tile_bytes<V_STRIDE>(lane % 16, lane / 16) + K_BYTES;
    const float c = a.scale * LOG2_E;
    float o[MT][V_TILES][4] = {};
    float row_max[MT][2], row_sum[MT][2] = {};
#pragma unroll
    for (int m = 0; m < MT; m++) row_max[m][0] = row_max[m][1] = -INFINITY;

    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is there, and nobody reads the other stage any more
        if (tile + 1 < tiles) load(tile + 1);
        const uint32_t stage = stage0 + tile % 2 * STAGE_BYTES;

        float s[MT][S_TILES][4] = {};
#pragma unroll
        for (int step = 0; step < K_STEPS; step++)
#pragma unroll
            for (int n = 0; n < S_TILES; n += 2) {
                uint32_t b[4];
                ldmatrix_x4(b, stage + k_lane + (n * 8 * K_STRIDE + step * 2) * 16);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_16816(T(), s[m][n], q_fragments[m][step], b[0], b[1]);
                    mma_16816(T(), s[m][n + 1], q_fragments[m][step], b[2], b[3]);
                }
            }

        const int key0 = tile * KEYS;
        if (a.causal ? key0 + KEYS > row0 + 1 : tile + 1 == tiles) {
            const int existing = keys_of(a, blockIdx.z).count;  // again: no register holds it through the loop
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int row = row0 + m * 16 + lane / 4 + i / 2 * 8;
                    const int visible = (a.causal ? min(existing, row + 1) : existing) - key0 - lane % 4 * 2 - i % 2;
#pragma unroll
                    for (int n = 0; n < S_TILES; n++)
                        if (n * 8 >= visible) s[m][n][i] = -INFINITY;
                }
        }

#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float top = row_max[m][h];
#pragma unroll
                for (int n = 0; n < S_TILES; n++) top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                top = quad_max(top);
                const float keep = exp2_approx((row_max[m][h] - top) * c), offset = top * c;
                row_max[m][h] = top;
                float sum = 0.f;
#pragma unroll
                for (int n = 0; n < S_TILES; n++) {
                    s[m][n][2 * h] = exp2_approx(s[m][n][2 * h] * c - offset);
                    s[m][n][2 * h + 1] = exp2_approx(s[m][n][2 * h + 1] * c - offset);
                    sum += s[m][n][2 * h] + s[m][n][2 * h + 1];
                }
                row_sum[m][h] = row_sum[m][h] * keep + sum;
#pragma unroll
                for (int n = 0; n < V_TILES; n++) {
                    o[m][n][2 * h] *= keep;
                    o[m][n][2 * h + 1] *= keep;
                }
            }

#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            uint32_t p[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float* pair = &s[m][step * 2 + i / 2][i % 2 * 2];
                    p[m][i] = pack2(T(), pair[0], pair[1]);
                }
            const uint32_t v_step = stage + v_lane + step * 16 * V_STRIDE * 16;
#pragma unroll
            for (int n = 0; n + 1 < V_TILES; n += 2) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, v_step + n * 16);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_16816(T(), o[m][n], p[m], b[0], b[1]);
                    mma_16816(T(), o[m][n + 1], p[m], b[2], b[3]);
                }
            }
            if constexpr (V_TILES % 2) {
                uint32_t b0, b1;
                ldmatrix_x2_trans(b0, b1, v_step + (V_TILES - 1) * 16);
#pragma unroll
                for (int m = 0; m < MT; m++) mma_16816(T(), o[m][V_TILES - 1], p[m], b0, b1);
            }
        }
    }

#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float scale = __fdividef(1.f, quad_sum(row_sum[m][h]));
            const int row = row0 + m * 16 + lane / 4 + h * 8;
            if (row >= a.t) continue;
            T* to = out + size_t(row) * a.out_pitch + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < V_TILES; n++)
                if (n * 8 < a.d)
                    *reinterpret_cast<uint32_t*>(to + n * 8) =
                        pack2(T(), o[m][n][2 * h] * scale, o[m][n][2 * h + 1] * scale);
        }
}

// Block (x, y, z): queries x*32 .. of head y of image z, d at most 512. Shared memory holds one tile of K, one of
// V (each loads while the other is in use), the partial S and P: 100,992 bytes, under the 99 KB of sm_86 and sm_89.
template <typename T> __device__ __forceinline__ void attention_wide(const AttentionArgs& a) {
    constexpr int WARPS = 8, THREADS = WARPS * 32, QUERIES = 32, KEYS = 32;
    constexpr int SLICE = 64;  // columns of d a warp owns
    constexpr int STRIDE = WARPS * SLICE / 8, P_STRIDE = KEYS / 8 + 1;  // chunks
    constexpr int TILE_BYTES = KEYS * STRIDE * 16;
    extern __shared__ uint4 shared[];
    const Keys of_image = keys_of(a, blockIdx.z);
    const int existing = of_image.count;
    if (existing < a.fewest_keys) return;
    const uint32_t k_tile = shared_address(shared), v_tile = k_tile + TILE_BYTES;
    float* partial = reinterpret_cast<float*>(shared + 2 * TILE_BYTES / 16);  // [WARPS,QUERIES,KEYS], swizzled
    T* p_tile = reinterpret_cast<T*>(partial + WARPS * QUERIES * KEYS);       // [QUERIES,P_STRIDE*8]
    float* factor = reinterpret_cast<float*>(p_tile + QUERIES * P_STRIDE * 8);  // [QUERIES]

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
    const int row0 = blockIdx.x * QUERIES, head = blockIdx.y * a.d, column0 = warp * SLICE;
    const T* q = static_cast<const T*>(a.q) + size_t(blockIdx.z) * a.t * a.q_pitch + head;
    const T* k = static_cast<const T*>(a.k) + of_image.first * a.k_pitch + head;
    const T* v = static_cast<const T*>(a.v) + of_image.first * a.v_pitch + head;
    T* out = static_cast<T*>(a.out) + size_t(blockIdx.z) * a.t * a.out_pitch + head;
    const int tiles = ((a.causal ? min(existing, row0 + QUERIES) : existing) + KEYS - 1) / KEYS;
    TileCopy<T, KEYS, STRIDE, STRIDE, THREADS> k_copy(k, a.k_pitch, existing, a.d / 8), v_copy(v, a.v_pitch, existing, a.d / 8);
    k_copy.next(k_tile);
    cp_async_commit();

    uint32_t q_fragments[2][SLICE / 16][4];
#pragma unroll
    for (int m = 0; m < 2; m++) {
        const T* from = q + size_t(row0 + m * 16) * a.q_pitch + column0;
        load_q<T>(q_fragments[m], from, a.q_pitch, a.t - row0 - m * 16, a.d - column0);
    }

    // The softmax of row `row` belongs to 8 threads, 4 keys each.
    const int row = threadIdx.x / 8, key = threadIdx.x % 8 * 4;
    const float c = a.scale * LOG2_E;
    float row_max = -INFINITY, row_sum = 0.f;
    float o[2][SLICE / 8][4] = {};

    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // K is there; V and P of the last tile are done with
        v_copy.next(v_tile);
        cp_async_commit();

        float s[2][KEYS / 8][4] = {};
#pragma unroll
        for (int step = 0; step < SLICE / 16; step++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                uint32_t b[4];
                const int chunk = column0 / 8 + step * 2 + lane / 8 % 2;
                ldmatrix_x4(b, k_tile + tile_bytes<STRIDE>(n * 8 + lane % 8 + lane / 16 * 8, chunk));
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma_16816(T(), s[m][n], q_fragments[m][step], b[0], b[1]);
                    mma_16816(T(), s[m][n + 1], q_fragments[m][step], b[2], b[3]);
                }
            }
        // Rows are 32 floats; XOR with 8 * (row % 4) spreads the fragments' rows over the banks.
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int column = (n * 8 + lane % 4 * 2) ^ g % 4 * 8;
                    float* to = partial + (warp * QUERIES + m * 16 + h * 8 + g) * KEYS + column;
                    *reinterpret_cast<float2*>(to) = make_float2(s[m][n][2 * h], s[m][n][2 * h + 1]);
                }
        __syncthreads();  // all partial S are there; K is done with
        if (tile + 1 < tiles) k_copy.next(k_tile);
        cp_async_commit();

        float sum[4] = {};
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const int at = (w * QUERIES + row) * KEYS + (key ^ row % 4 * 8);
            const float4 x = *reinterpret_cast<const float4*>(partial + at);
            sum[0] += x.x, sum[1] += x.y, sum[2] += x.z, sum[3] += x.w;
        }
        const int visible = (a.causal ? min(existing, row0 + row + 1) : existing) - tile * KEYS - key;
        float top = row_max;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i >= visible) sum[i] = -INFINITY;
            top = fmaxf(top, sum[i]);
        }
#pragma unroll
        for (int offset = 1; offset < 8; offset *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
        const float keep = exp2_approx((row_max - top) * c);
        row_max = top;
        row_sum *= keep;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum[i] = exp2_approx((sum[i] - top) * c);
            row_sum += sum[i];
        }
        *reinterpret_cast<uint2*>(p_tile + row * P_STRIDE * 8 + key) =
            make_uint2(pack2(T(), sum[0], sum[1]), pack2(T(), sum[2], sum[3]));
        if (key == 0) factor[row] = keep;
        cp_async_wait<1>();
        __syncthreads();  // P and V are there

#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float keep_row = factor[m * 16 + h * 8 + g];
#pragma unroll
                for (int n = 0; n < SLICE / 8; n++) {
                    o[m][n][2 * h] *= keep_row;
                    o[m][n][2 * h + 1] *= keep_row;
                }
            }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            uint32_t p[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const int at = tile_bytes<P_STRIDE>(m * 16 + lane % 16, step * 2 + lane / 16);
                ldmatrix_x4(p[m], shared_address(p_tile) + at);
            }
#pragma unroll
            for (int n = 0; n < SLICE / 8; n += 2) {
                uint32_t b[4];
                const int chunk = column0 / 8 + n + lane / 16;
                ldmatrix_x4_trans(b, v_tile + tile_bytes<STRIDE>(step * 16 + lane % 16, chunk));
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma_16816(T(), o[m][n], p[m], b[0], b[1]);
                    mma_16816(T(), o[m][n + 1], p[m], b[2], b[3]);
                }
            }
        }
    }

#pragma unroll
    for (int offset = 1; offset < 8; offset *= 2) row_sum += __shfl_xor_sync(0xffffffffu, row_sum, offset);
    __syncthreads();  // nobody reads the last tile's factors any more
    if (key == 0) factor[row] = __fdividef(1.f, row_sum);
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = m * 16 + h * 8 + g;
            if (row0 + r >= a.t) continue;
            T* to = out + size_t(row0 + r) * a.out_pitch + column0 + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < SLICE / 8; n++)
                if (column0 + n * 8 < a.d)
                    *reinterpret_cast<uint32_t*>(to + n * 8) =
                        pack2(T(), o[m][n][2 * h] * factor[r], o[m][n][2 * h + 1] * factor[r]);
        }
}

// Table of contents: attention_d<D>_q<queries a block>_<dtype>, attention_wide_<dtype>.
// Queries, threads and shared bytes are mirrored in AttentionPlan.
#define ATTENTION(D, QUERIES, WARPS, MT, KEYS)                                        \
    static_assert(QUERIES == WARPS * MT * 16, "the name says how many");              \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                          \
        attention_d##D##_q##QUERIES##_f16(const __grid_constant__ AttentionArgs a) {  \
        after_previous_kernel();                                                      \
        attention<half, D, WARPS, MT, KEYS>(a);                                       \
    }                                                                                 \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                          \
        attention_d##D##_q##QUERIES##_bf16(const __grid_constant__ AttentionArgs a) { \
        after_previous_kernel();                                                      \
        attention<__nv_bfloat16, D, WARPS, MT, KEYS>(a);                              \
    }

ATTENTION(32, 64, 4, 1, 64)
ATTENTION(32, 128, 4, 2, 64)
ATTENTION(40, 64, 4, 1, 64)
ATTENTION(40, 128, 4, 2, 64)
ATTENTION(64, 64, 4, 1, 64)
ATTENTION(64, 128, 4, 2, 64)
ATTENTION(80, 64, 4, 1, 64)
ATTENTION(80, 128, 4, 2, 32)
ATTENTION(128, 64, 4, 1, 32)
ATTENTION(160, 32, 2, 1, 32)
ATTENTION(160, 64, 4, 1, 64)

extern "C" __global__ void __launch_bounds__(256) attention_wide_f16(const __grid_constant__ AttentionArgs a) {
    after_previous_kernel();
    attention_wide<half>(a);
}
extern "C" __global__ void __launch_bounds__(256) attention_wide_bf16(const __grid_constant__ AttentionArgs a) {
    after_previous_kernel();
    attention_wide<__nv_bfloat16>(a);
}
