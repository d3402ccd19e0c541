// Attention on Hopper: products of warpgroups, keys and values brought by the copy engine.
//
//   out[b,t,h,:] = sum over s of softmax over s (scale q[b,t,h,:].k[b,s,h,:])  v[b,s,h,:]
//
// One pass over the keys with a running shift of the exponents (FlashAttention-2, arXiv 2307.08691); the products of one tile
// of keys run while the exponentials of another are computed (FlashAttention-3, arXiv 2407.08608). Heads are narrow: with
// d = 40 the exponentials take as long as both products. Hence four warpgroups with small tiles, so that each of a
// multiprocessor's schedulers has four warps, some with exponentials to compute, while others wait for products.
//
//   block (64 M queries of one head), 4 warpgroups = M of different queries x G of different keys:
//     warpgroup:  S = Q K0^T;  shift = row maxima of S;  for each tile i of its keys:
//       P = exp(S - shift), and only where that is too large, S and P again with another shift
//       wait for O;  P in halves, in registers
//       start S = Q K(i+1)^T and O += P Vi;  wait for S
//     a thread of the last warpgroup of each G:  K, V of the STAGES tiles to come -> shared
//     G > 1:  sums of warpgroups with the same queries are added through shared memory
//
// Left alone, warpgroups fall into step: all wait for products, then all compute exponentials. With G = 1 they start their
// products in turns (the "ping-pong" of FlashAttention-3, for four).
//
// The shift of a row is the maximum of the first tile. Later tiles are not searched for theirs: the sum of a thread's
// weights of a row and tile bounds each of them, and f16 holds large weights as well as small ones (FlashAttention-4
// rescales rarely for the same reason). Only where such a sum passes 2^15 does the warp raise its rows' shifts to the
// maxima so far and shrink what was summed. By then the scores are overwritten, and wgmma needs four warps: the one
// computes its scores again with mma.sync.
//
// A head's d channels are a dimension of the tensor that the copy engine sees: boxes of 64 channels, and those from d on
// arrive as zeros. So d = 40 needs three k steps for S and 40 columns of O, and nothing is masked but the last tile's keys.
// That tile is the first to be computed.
//
// SD 1.5 at 512x512, batch 2 (b*heads, t, d): 16x4096x40, 16x1024x80, 16x256x160. Which M and G: src/gpu/attention_sm90.rs.
// Test: cargo test --release --test kernels attention        Bench: cargo bench --bench kernels attention
#include "hopper.cuh"
#include "mma.cuh"
#include "softmax.cuh"

constexpr int WARPGROUP = 128;
constexpr int WARPGROUPS = 4;
constexpr int QUERIES = 64;   // of a warpgroup
constexpr int BOX = 64;       // channels of a box: 128 bytes
constexpr int ROW = BOX * 2;  // bytes
constexpr float LARGEST = 0x1p15f;  // sum of a thread's weights that bounds each: halves end at 65504
constexpr int TURN = 1;             // the first of the warpgroups' named barriers

template <typename T, int D, int M, int KEYS, unsigned STAGES>
__device__ __forceinline__ void attention(const AttentionSm90Args& p) {
    constexpr int G = WARPGROUPS / M;
    constexpr int BOXES = (D + BOX - 1) / BOX;
    constexpr int K_STEPS = (D + 15) / 16;
    constexpr int Q_BYTES = BOXES * QUERIES * ROW;  // of a warpgroup
    constexpr int TILE = BOXES * KEYS * ROW;        // of K, and of V
    constexpr int STAGE = 2 * TILE;
    constexpr int STEPS = KEYS / 16;
    // A tile is asked for when the one before the last is done: that must not be the one that waits for it.
    static_assert(STAGES != 2, "no tile would come");

    const AttentionArgs& a = p.attention;
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char* const rings = shared + M * Q_BYTES;
    uint64_t* const q_full = reinterpret_cast<uint64_t*>(rings + G * STAGES * STAGE);

    const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / WARPGROUP, 0);
    const int mine = warpgroup % M, group = warpgroup / M;
    unsigned char* const ring = rings + group * STAGES * STAGE;
    uint64_t* const full = q_full + 1 + group * 2 * STAGES;
    uint64_t* const empty = full + STAGES;
    const int head = blockIdx.y % a.heads, image = blockIdx.y / a.heads;
    const int t0 = blockIdx.x * M * QUERIES;
    // Tiles group, group + G, ... are this group's; the last is number 0, those before it follow in order.
    const unsigned count = ((a.s + KEYS - 1) / KEYS - group + G - 1) / G;
    auto first_key = [&](unsigned i) { return (group + (i == 0 ? count - 1 : i - 1) * G) * KEYS; };
    // The last in turn: the others are done with a tile before it is.
    const bool copies = threadIdx.x % (M * WARPGROUP) == (M - 1) * WARPGROUP;

    auto copy = [&](unsigned i) {
        unsigned char* const k = ring + i % STAGES * STAGE;
        uint64_t* const barrier = &full[i % STAGES];
        const int key = first_key(i);
        barrier_expect(barrier, STAGE);
#pragma unroll
        for (int box = 0; box < BOXES; box++) copy_box_4d(k + box * KEYS * ROW, &p.k, barrier, box * BOX, head, key, image);
#pragma unroll
        for (int box = 0; box < BOXES; box++) copy_box_4d(k + TILE + box * KEYS * ROW, &p.v, barrier, box * BOX, head, key, image);
    };
    if (threadIdx.x == 0) {
        barrier_init(q_full, 1);
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
            for (int s = 0; s < STAGES; s++) {
                barrier_init(&q_full[1 + (2 * g) * STAGES + s], 1);
                barrier_init(&q_full[1 + (2 * g + 1) * STAGES + s], M);
            }
        barrier_init_fence();
        prefetch_map(&p.q);
        prefetch_map(&p.k);
        prefetch_map(&p.v);
    }
    __syncthreads();
    after_previous_kernel();
    if (threadIdx.x == 0) {
        barrier_expect(q_full, M * Q_BYTES);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int box = 0; box < BOXES; box++)
                copy_box_4d(shared + m * Q_BYTES + box * QUERIES * ROW, &p.q, q_full, box * BOX, head, t0 + m * QUERIES, image);
    }
    if (copies)
        for (unsigned i = 0; i < min(count, STAGES); i++) copy(i);

    const int thread = threadIdx.x % WARPGROUP, lane = threadIdx.x % 32, warp = thread / 32;
    const float scale = a.scale * LOG2_E;
    const uint64_t q = tile_descriptor(shared + mine * Q_BYTES);
    const uint64_t k0 = tile_descriptor(ring), v0 = tile_descriptor_by_k(ring + TILE, KEYS * ROW);
    float s[KEYS / 2], o[D / 2], shift[2], total[2] = {};
    uint32_t weights[STEPS][4];

    // S = Q K^T
    auto start_scores = [&](unsigned slot, unsigned parity) {
        const uint64_t k = k0 + slot * (STAGE / 16);
        barrier_wait(&full[slot], parity);
        keep(s);
        wgmma_begin();
#pragma unroll
        for (int step = 0; step < K_STEPS; step++) {
            const int box = step / 4, within = step % 4;
            Wgmma<KEYS>::run(T(), s, q + box * (QUERIES * ROW / 16) + within * 2, k + box * (KEYS * ROW / 16) + within * 2,
                             step > 0);
        }
        wgmma_commit();
    };
    // O += P V
    auto start_sums = [&](unsigned slot) {
        const uint64_t v = v0 + slot * (STAGE / 16);
        keep(o);
        wgmma_begin();
#pragma unroll
        for (int step = 0; step < STEPS; step++)
            WgmmaRegisters<D>::run(T(), o, weights[step], v + step * (16 * ROW / 16), 1);
        wgmma_commit();
    };
    // The same by this warp alone, where the scores have become exponentials. The slot is not free yet: the sums of this
    // tile, for which all four warps are needed, have not been started.
    auto scores_again = [&](unsigned slot) {
        // Forgotten, or the addresses would be kept in registers all the time.
        unsigned at = thread;
        asm volatile("" : "+r"(at));
        const unsigned row = at % 8, odd = at / 8 % 2, high = at / 16 % 2;
        const unsigned char* const from_q = shared + mine * Q_BYTES + (at / 32 * 16 + odd * 8 + row) * ROW;
        const unsigned char* const from_k = ring + slot * STAGE + (high * 8 + row) * ROW;
#pragma unroll
        for (int j = 0; j < KEYS / 2; j++) s[j] = 0.f;
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            // One after another: there are no registers for more.
            __syncwarp();
#pragma unroll
            for (int step = 0; step < K_STEPS; step++) {
                const unsigned box = step / 4, chunk = step % 4 * 2;
                uint32_t queries[4], keys[4];
                load_matrices(queries, from_q + box * QUERIES * ROW + ((chunk + high) ^ row) * 16);
                load_matrices(keys, from_k + (box * KEYS + j * 16) * ROW + ((chunk + odd) ^ row) * 16);
                mma_16816(T(), reinterpret_cast<float(&)[4]>(s[j * 8]), queries, keys[0], keys[1]);
                mma_16816(T(), reinterpret_cast<float(&)[4]>(s[j * 8 + 4]), queries, keys[2], keys[3]);
            }
        }
    };
    auto row_maxima = [&](float(&top)[2]) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[h] = -INFINITY;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) top[h] = fmaxf(top[h], fmaxf(s[j * 4 + h * 2], s[j * 4 + h * 2 + 1]));
            top[h] = quad_max(top[h]) * scale;
        }
    };
    auto exponentials = [&](float(&sum)[2]) {
#pragma unroll
        for (int j = 0; j < KEYS / 2; j++) {
            s[j] = exp2_approx(s[j] * scale - shift[j / 2 % 2]);
            sum[j / 2 % 2] = j / 4 + j % 2 == 0 ? s[j] : sum[j / 2 % 2] + s[j];
        }
    };
    auto to_halves = [&] {
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int r = 0; r < 4; r++) weights[step][r] = pack2(T(), s[step * 8 + r * 2], s[step * 8 + r * 2 + 1]);
    };
    barrier_wait(q_full, 0);
    start_scores(0, 0);
    wgmma_wait<0>();
    keep(s);
    // Keys that do not exist weigh nothing: zeros were copied in their place.
    const int valid = a.s - first_key(0) - lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < KEYS / 2; j++)
        if (j / 4 * 8 + j % 2 >= valid) s[j] = -INFINITY;
    row_maxima(shift);
#pragma unroll
    for (int j = 0; j < D / 2; j++) o[j] = 0.f;

    // Tile i's exponentials, while the tile before adds to O; then its own sums and the next tile's scores.
    unsigned slot = 0, parity = 0;
    for (unsigned i = 0; i < (STAGES > 1 ? count : 1); i++) {
        if (copies && i > 1 && i - 2 + STAGES < count) {
            barrier_wait(&empty[(i - 2) % STAGES], (i - 2) / STAGES & 1);
            copy(i - 2 + STAGES);
        }
        float sum[2], shrink[2];
        exponentials(sum);
        // Also what keeps the compiler from waiting for O in front of the exponentials.
        const bool again = STAGES > 1 && __any_sync(0xffffffffu, fmaxf(sum[0], sum[1]) > LARGEST);
        if (again) {
            scores_again(slot);
            float top[2];
            row_maxima(top);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                top[h] = fmaxf(top[h], shift[h]);
                shrink[h] = exp2_approx(shift[h] - top[h]);
                shift[h] = top[h];
                total[h] *= shrink[h];
            }
            exponentials(sum);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) total[h] += sum[h];
        wgmma_wait<0>();
        keep(o);
        if (i > 0 && thread == 0) barrier_arrive(&empty[slot == 0 ? STAGES - 1 : slot - 1]);
        if (again) {
#pragma unroll
            for (int j = 0; j < D / 2; j++) o[j] *= shrink[j / 2 % 2];
        }
        to_halves();
        if (G == 1 && (i > 0 || warpgroup > 0)) named_sync(TURN + warpgroup, 2 * WARPGROUP);
        const unsigned next = slot + 1 == STAGES ? 0 : slot + 1;
        parity ^= next == 0;
        if (STAGES > 1 && i + 1 < count) start_scores(next, parity);
        start_sums(slot);
        slot = next;
        // The scores were started first.
        wgmma_wait<1>();
        keep(s);
        if (G == 1 && (i + 1 < count || warpgroup + 1 < WARPGROUPS))
            named_arrive(TURN + (warpgroup + 1) % WARPGROUPS, 2 * WARPGROUP);
    }
    wgmma_wait<0>();
    keep(o);
#pragma unroll
    for (int h = 0; h < 2; h++) total[h] = quad_sum(total[h]);

    // Half of the groups hand their sums to the other half, until one has them all.
    if constexpr (G > 1) {
        float* const handed = reinterpret_cast<float*>(rings) + thread;
        constexpr int EACH = (D / 2 + 4) * WARPGROUP;
        static_assert((WARPGROUPS / 2) * EACH * 4 <= G * int(STAGES) * STAGE, "sums are handed over in the tiles' memory");
#pragma unroll
        for (int half = G / 2; half > 0; half /= 2) {
            // Nobody reads a tile, or what was handed before, any more.
            __syncthreads();
            if (group >= half && group < 2 * half) {
                float* const to = handed + (warpgroup - half * M) * EACH;
#pragma unroll
                for (int j = 0; j < D / 2; j++) to[j * WARPGROUP] = o[j];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    to[(D / 2 + h) * WARPGROUP] = shift[h];
                    to[(D / 2 + 2 + h) * WARPGROUP] = total[h];
                }
            }
            __syncthreads();
            if (group < half) {
                const float* const from = handed + warpgroup * EACH;
                float own[2], other[2];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float theirs = from[(D / 2 + h) * WARPGROUP], both = fmaxf(shift[h], theirs);
                    own[h] = exp2_approx(shift[h] - both);
                    other[h] = exp2_approx(theirs - both);
                    shift[h] = both;
                    total[h] = total[h] * own[h] + from[(D / 2 + 2 + h) * WARPGROUP] * other[h];
                }
#pragma unroll
                for (int j = 0; j < D / 2; j++)
                    o[j] = o[j] * own[j / 2 % 2] + from[j * WARPGROUP] * other[j / 2 % 2];
            }
        }
        if (group > 0) return;
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int t = t0 + mine * QUERIES + warp * 16 + lane / 4 + h * 8;
        if (t >= a.t) continue;
        const float share = __fdividef(1.f, total[h]);
        T* out = static_cast<T*>(a.out) + (static_cast<int64_t>(image) * a.t + t) * a.out_pitch + head * D + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            *reinterpret_cast<uint32_t*>(out + j * 8) =
                pack2(T(), o[j * 4 + h * 2] * share, o[j * 4 + h * 2 + 1] * share);
    }
}

// Contents: attention_sm90_{f16,bf16}_d{D}_q{64 M}. Grid (tiles of 64 M queries, b*heads), 512 threads, shared memory
// 128 * boxes * (64 M + 2 G * stages * keys) + 8 * (1 + 2 * G * stages) bytes, boxes = ceil(d / 64).
#define ATTENTION(D, Q, KEYS, STAGES)                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPGROUPS * WARPGROUP, 1)                                            \
        attention_sm90_f16_d##D##_q##Q(const __grid_constant__ AttentionSm90Args p) {                                  \
        attention<half, D, Q / QUERIES, KEYS, STAGES>(p);                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPGROUPS * WARPGROUP, 1)                                            \
        attention_sm90_bf16_d##D##_q##Q(const __grid_constant__ AttentionSm90Args p) {                                 \
        attention<__nv_bfloat16, D, Q / QUERIES, KEYS, STAGES>(p);                                                     \
    }
ATTENTION(40, 128, 96, 4)
ATTENTION(40, 256, 96, 6)
ATTENTION(64, 128, 80, 4)
ATTENTION(64, 256, 80, 6)
ATTENTION(80, 128, 64, 3)
ATTENTION(80, 256, 64, 4)
ATTENTION(160, 64, 64, 1)
