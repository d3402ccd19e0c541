// Linear layers on Hopper, with everything that follows a product in them.
//
//   linear_sm90:  out = p + residual                            with p = x weight^T + bias
//   geglu_sm90:   out = p[:, :n/2] * gelu(p[:, n/2:])           (f32, rounded once)
//
// SD's products are short: k is 320 to 1280 where m n is millions, so that finishing a tile takes a good part of the time
// of multiplying it. Hence two warpgroups in turns ("ping-pong", as in CUTLASS): one multiplies its tile while the other
// finishes and writes its own. Where blocks have one tile each, nothing would overlap: there the two work together, on half
// of its rows each.
//
//   block, one for each multiprocessor, 3 warpgroups; its tiles are blockIdx, blockIdx + blocks, ...:
//     producer, one thread:  for each tile, each k tile of 64:  wait until the slot is empty;  A, B -> shared
//     consumer w of two, in turns:  for each tile w, w + 2, ...:
//       residual -> shared (cp.async), bias -> registers
//       wait until the other has multiplied the tile before
//       for each k tile:  wait until the slot is full;  sum += A B^T (wgmma);  the slot is empty
//       each warp, on its own rows:  sums, finished and rounded -> shared (stmatrix) -> out, 16 bytes a thread
//
// A tile of geglu is two boxes of the weight, values above their gates: a thread's sums hold both.
//
// SD 1.5 at 512x512, batch 2 (m, k, n): 8192x320x320, 8192x320x960, 8192x320x2x1280 (GEGLU), 8192x1280x320, 2048x640x..,
// 512x1280x... Which tile for which: src/gpu/linear_sm90.rs.
// Test: cargo test --release --test kernels linear        Bench: cargo bench --bench kernels linear
#include "hopper.cuh"

constexpr int BK = 64;
constexpr int CONSUMERS = 2;
constexpr int WARPGROUP = 128;
constexpr int TURN = 1;  // named barriers, one for each consumer

// Where a warp stages its rows of out's tile: EIGHTS times 8 rows of CHUNKS of 16 bytes. The swizzle puts a chunk of 8 rows
// into different banks, and leaves it among its four.
template <int EIGHTS, int CHUNKS> struct Staged {
    static constexpr int SPREAD = CHUNKS % 4 == 0 ? 4 : 2;
    static constexpr int BYTES = EIGHTS * 8 * CHUNKS * 16;
    static_assert(CHUNKS % 8 != 0 && CHUNKS % 2 == 0 && EIGHTS % 2 == 0, "rows of 8 chunks would need a wider swizzle");

    static __device__ __forceinline__ int offset(int eight, int row, int chunk) {
        return ((eight * 8 + row) * CHUNKS + (chunk ^ row / (8 / SPREAD))) * 16;
    }
    // body(this lane's offset, row and chunk, and how many eights and chunks further) for this lane's share: 4 chunks of 8
    // rows at a time, and 2 of 16 where they end.
    template <typename Body> static __device__ __forceinline__ void each(int lane, Body body) {
        const int row = lane / 4, chunk = lane % 4, last_row = lane / 2, last_chunk = lane % 2;
        const int first = offset(0, row, chunk), last = offset(last_row / 8, last_row % 8, last_chunk);
#pragma unroll
        for (int eight = 0; eight < EIGHTS; eight++)
#pragma unroll
            for (int chunks = 0; chunks < CHUNKS / 4 * 4; chunks += 4)
                body(first + (eight * 8 * CHUNKS + chunks) * 16, row, chunk, eight, chunks);
        if (CHUNKS % 4)
#pragma unroll
            for (int eight = 0; eight < EIGHTS; eight += 2)
                body(last + (eight * 8 * CHUNKS + CHUNKS / 4 * 4) * 16, last_row, last_chunk, eight, CHUNKS / 4 * 4);
    }
};

template <typename T, bool GATED, bool TOGETHER, int BM, int BN, int STAGES>
__device__ __forceinline__ void linear(const LinearSm90Args& p) {
    constexpr int ROWS = TOGETHER ? BM / CONSUMERS : BM;  // of a consumer
    constexpr int MI = ROWS / 64;                         // products of a consumer
    constexpr int COLUMNS = GATED ? BN / 2 : BN;          // of out
    constexpr int CHUNKS = COLUMNS / 8;
    constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, STAGE = A_BYTES + B_BYTES;
    static_assert(COLUMNS * BK * 2 % 1024 == 0, "boxes start at multiples of the swizzle's 1024 bytes");
    using Tile = Staged<MI * 2, CHUNKS>;

    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char* const staged = shared + STAGES * STAGE;
    uint64_t* const full = reinterpret_cast<uint64_t*>(staged + CONSUMERS * 4 * Tile::BYTES);
    uint64_t* const empty = full + STAGES;
    const LinearArgs& a = p.linear;
    const int warpgroup = threadIdx.x / WARPGROUP;
    const int k_tiles = (a.k + BK - 1) / BK;
    const int columns = GATED ? a.n / 2 : a.n;

    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < STAGES; s++) {
            barrier_init(&full[s], 1);
            barrier_init(&empty[s], TOGETHER ? CONSUMERS : 1);
        }
        barrier_init_fence();
    }
    __syncthreads();

    if (warpgroup == CONSUMERS) {
        give_registers<40>();
        if (threadIdx.x != CONSUMERS * WARPGROUP) return;
        prefetch_map(&p.x);
        prefetch_map(&p.weight);
        auto copy_weight = [&](int n, int tile, int kt) {
            uint64_t* const barrier = &full[n % STAGES];
            unsigned char* const to = shared + n % STAGES * STAGE + A_BYTES;
            const int row = tile % p.tiles_n * COLUMNS;
            barrier_expect(barrier, STAGE);
            copy_box_2d(to, &p.weight, barrier, kt * BK, row);
            if (GATED) copy_box_2d(to + B_BYTES / 2, &p.weight, barrier, kt * BK, columns + row);
        };
        // Weights are there already; x is what the kernel before writes.
        const int early = min(STAGES, k_tiles);
        for (int kt = 0; kt < early; kt++) copy_weight(kt, blockIdx.x, kt);
        after_previous_kernel();
        int n = 0;
        for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x)
            for (int kt = 0; kt < k_tiles; kt++, n++) {
                if (n >= STAGES) barrier_wait(&empty[n % STAGES], (n / STAGES - 1) & 1);
                if (n >= early) copy_weight(n, tile, kt);
                copy_box_2d(shared + n % STAGES * STAGE, &p.x, &full[n % STAGES], kt * BK, tile / p.tiles_n * BM);
            }
        return;
    }

    take_registers<232>();
    after_previous_kernel();
    const int thread = threadIdx.x % WARPGROUP, lane = thread % 32, warp = thread / 32;
    unsigned char* const mine = staged + threadIdx.x / 32 * Tile::BYTES;
    float sum[MI][BN / 2];
    const int first_row = TOGETHER ? warpgroup * ROWS : 0;
    for (int turn = TOGETHER ? 0 : warpgroup; blockIdx.x + turn * gridDim.x < p.tiles; turn += TOGETHER ? 1 : CONSUMERS) {
        const int tile = blockIdx.x + turn * gridDim.x;
        const int m0 = tile / p.tiles_n * BM + first_row + warp * 16, c0 = tile % p.tiles_n * COLUMNS;
        const int first = turn * k_tiles;
        // body(where a chunk is staged, where it is in `tensor`) for the chunks of out that there are.
        auto each = [&](auto* tensor, int pitch, auto body) {
            Tile::each(lane, [&](int offset, int row, int chunk, int eights, int chunks) {
                const int rows = eights / 2 * 64 + eights % 2 * 8;
                if (m0 + row + rows < a.m && c0 + (chunk + chunks) * 8 < columns)
                    body(mine + offset, tensor + static_cast<int64_t>(m0 + row) * pitch + c0 + chunk * 8 +
                                            (static_cast<int64_t>(rows) * pitch + chunks * 8));
            });
        };

        uint32_t bias[BN / 8] = {};  // of this thread's two columns in every eight
        if (a.bias) {
            const T* const from = static_cast<const T*>(a.bias) + c0 + lane % 4 * 2;
            const T* const gates = from + columns;
#pragma unroll
            for (int j = 0; j < BN / 8; j++)
                if (c0 + j % CHUNKS * 8 < columns)
                    bias[j] = *reinterpret_cast<const uint32_t*>((j < CHUNKS ? from : gates) + j % CHUNKS * 8);
        }
        if (!GATED && a.residual)
            each(static_cast<const T*>(a.residual), a.residual_pitch,
                 [&](unsigned char* to, const T* from) { copy_async_16(to, from); });

        // A barrier tells phases by parity alone: whoever waits for one must know that those before it are over.
        if (!TOGETHER && turn > 0) named_sync(TURN + warpgroup, CONSUMERS * WARPGROUP);
        for (int kt = 0; kt < k_tiles; kt++) {
            const int n = first + kt, slot = n % STAGES;
            barrier_wait(&full[slot], n / STAGES & 1);
            const uint64_t at = tile_descriptor(shared + slot * STAGE + first_row * BK * 2);
            const uint64_t bt = tile_descriptor(shared + slot * STAGE + A_BYTES);
#pragma unroll
            for (int mi = 0; mi < MI; mi++) keep(sum[mi]);
            wgmma_begin();
#pragma unroll
            for (int step = 0; step < BK / 16; step++)
#pragma unroll
                for (int mi = 0; mi < MI; mi++)
                    // 16 halves of k are 32 bytes, 64 rows are 8192: in units of 16.
                    Wgmma<BN>::run(T(), sum[mi], at + step * 2 + mi * 512, bt + step * 2, kt > 0 || step > 0);
            wgmma_commit();
#pragma unroll
            for (int mi = 0; mi < MI; mi++) keep(sum[mi]);
            // The products of the k tile before this one are done: its slot is free.
            wgmma_wait<1>();
            if (kt > 0 && thread == 0) barrier_arrive(&empty[(n - 1) % STAGES]);
        }
        if (!TOGETHER && tile + gridDim.x < p.tiles) named_arrive(TURN + 1 - warpgroup, CONSUMERS * WARPGROUP);
        wgmma_wait<0>();
#pragma unroll
        for (int mi = 0; mi < MI; mi++) keep(sum[mi]);
        if (thread == 0) barrier_arrive(&empty[(first + k_tiles - 1) % STAGES]);

        if (!GATED && a.residual) {
            copy_async_wait();
            __syncwarp();
        }
        // Two chunks of 16 rows at a time, four matrices: rows 0-7 and 8-15 of the first, then of the second.
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk += 2) {
            unsigned char* at[MI];
            uint32_t halves[MI][4];  // of the residual, then of out
#pragma unroll
            for (int mi = 0; mi < MI; mi++) {
                at[mi] = mine + Tile::offset(mi * 2 + lane / 8 % 2, lane % 8, chunk + lane / 16);
                if (!GATED && a.residual) load_matrices(halves[mi], at[mi]);
            }
#pragma unroll
            for (int mi = 0; mi < MI; mi++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int j = chunk + i / 2, e = j * 4 + i % 2 * 2;
                    const float2 b = to_floats(T(), bias[j]);
                    float2 v = make_float2(sum[mi][e] + b.x, sum[mi][e + 1] + b.y);
                    if constexpr (GATED) {
                        const float2 gate = to_floats(T(), bias[j + CHUNKS]);
                        v.x *= gelu_of_half(sum[mi][e + CHUNKS * 4] + gate.x);
                        v.y *= gelu_of_half(sum[mi][e + CHUNKS * 4 + 1] + gate.y);
                    } else if (a.residual) {
                        const float2 r = to_floats(T(), halves[mi][i]);
                        v.x += r.x;
                        v.y += r.y;
                    }
                    halves[mi][i] = pack2(T(), v.x, v.y);
                }
                store_matrices(at[mi], halves[mi]);
            }
        }
        __syncwarp();
        each(static_cast<T*>(a.out), a.out_pitch, [&](const unsigned char* from, T* to) {
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
        });
        __syncwarp();
    }
}

// Contents: {linear,geglu}_sm90_{f16,bf16}_{tile}, linear_together_sm90_... Grid: at most one block for each multiprocessor;
// 384 threads; shared memory as of src/gpu/linear_sm90.rs. All pitches and n are multiples of 8.
#define LINEAR(NAME, GATED, TOGETHER, BM, BN, STAGES)                                                                  \
    extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)                                       \
        NAME##_sm90_f16_##BM##x##BN(const __grid_constant__ LinearSm90Args p) {                                        \
        linear<half, GATED, TOGETHER, BM, BN, STAGES>(p);                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)                                       \
        NAME##_sm90_bf16_##BM##x##BN(const __grid_constant__ LinearSm90Args p) {                                       \
        linear<__nv_bfloat16, GATED, TOGETHER, BM, BN, STAGES>(p);                                                     \
    }
//                      gated  together  m    n   stages
LINEAR(linear,          false, false,   128, 160, 4)
LINEAR(linear,          false, false,    64, 160, 6)
LINEAR(linear,          false, false,    64,  80, 8)
LINEAR(linear_together, false, true,    128, 160, 5)
LINEAR(linear_together, false, true,    128,  80, 7)
LINEAR(geglu,           true,  false,   128, 160, 5)
LINEAR(geglu,           true,  false,    64, 160, 6)
