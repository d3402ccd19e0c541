// Hopper's own instructions (sm_90a): barriers in shared memory, the tensor copy engine (TMA), products of a
// warpgroup (wgmma), clusters.
//
// A product of a warpgroup, m64 n16k: A and B lie in shared memory as rows of 64 halves, 128 bytes, with chunks of 16
// bytes at chunk ^ (row % 8), as the copy engine writes them with the 128-byte swizzle; groups of 8 rows follow each other.
// The sums: warp w of the four has rows 16 w + lane / 4 (and 8 more), sum[4 j + e] is column 8 j + 2 (lane % 4) + e % 2,
// of the second row where e > 1.
#pragma once
#include "common.cuh"

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals));
}
// Makes the barriers' start visible to the copy engine and to the cluster.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
// The same at that place in a block of the cluster, which may be this one.
__device__ __forceinline__ void barrier_arrive_cluster(uint64_t* barrier, uint32_t rank) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}
// Arrives here, and lets the barrier wait for so many bytes too.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Waits until the phase of this parity is over.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}
// Boxes of a tensor to shared memory; coordinates from the innermost dimension. Outside the tensor there are zeros.
__device__ __forceinline__ void copy_box_4d(void* to, const TensorMap* map, uint64_t* barrier, int c0, int c1, int c2, int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(
            shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}
__device__ __forceinline__ void copy_box_3d(void* to, const TensorMap* map, uint64_t* barrier, int c0, int c1, int c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];\n" ::"r"(
            shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
__device__ __forceinline__ void copy_box_2d(void* to, const TensorMap* map, uint64_t* barrier, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];\n" ::"r"(
            shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
        : "memory");
}
// To the same place in every block of the cluster whose bit is set; each block's barrier counts its own bytes.
__device__ __forceinline__ void copy_box_3d_to_cluster(void* to, const TensorMap* map, uint64_t* barrier, int c0, int c1,
                                                       int c2, uint16_t ranks) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, "
        "%5}], [%2], %6;\n" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "h"(ranks)
        : "memory");
}

template <int REGISTERS> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}
// Waits for so many threads; barrier 0 is __syncthreads.
__device__ __forceinline__ void named_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}
// Is one of those threads, but does not wait.
__device__ __forceinline__ void named_arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

// Four 8x8 matrices of halves: lane l gives the 16 bytes of row l % 8 of matrix l / 8, and holds of each matrix two halves of
// row l / 4, as a warpgroup's sums lie.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void store_matrices(void* row, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared_address(row)), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
// 16 bytes to shared memory by a thread, in the background.
__device__ __forceinline__ void copy_async_16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(to)), "l"(from) : "memory");
}
// For all of this thread's.
__device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
    return rank;
}
// Everyone's shared memory is written (before) or read (after). One piece: ptxas of CUDA 13.0 leaves out an arrival whose
// wait stands elsewhere.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
// The same for blocks that have only read since: without a fence for what they wrote.
__device__ __forceinline__ void cluster_wait_for_readers() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;\n" ::: "memory");
}
// Four floats of the shared memory of another block of the cluster.
__device__ __forceinline__ float4 load_cluster(const float* p, uint32_t rank) {
    uint32_t address;
    float4 v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];\n" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address));
    return v;
}
__device__ __forceinline__ float2 load_cluster(const float2* p, uint32_t rank) {
    uint32_t address;
    float2 v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];\n" : "=f"(v.x), "=f"(v.y) : "r"(address));
    return v;
}

// What wgmma knows of a tile: its address, 1024 bytes between groups of 8 rows, 128-byte swizzle.
__device__ __forceinline__ uint64_t tile_descriptor(const void* tile) {
    return (shared_address(tile) >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
// The same for a tile whose rows are k: `next` bytes to the tile of the next 64 columns.
__device__ __forceinline__ uint64_t tile_descriptor_by_k(const void* tile, uint32_t next) {
    return (shared_address(tile) >> 4 & 0x3fff) | static_cast<uint64_t>(next >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}
// Sums stay in their registers while products are under way.
template <int N> __device__ __forceinline__ void keep(float (&sum)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(sum[i])::"memory");
}

// sum += A [64,16] B [n,16]^T; the first product of a sum sets it (add = 0).
template <int N> struct Wgmma;
#define SDRT_R4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SDRT_R16(i) SDRT_R4(i), SDRT_R4(i + 4), SDRT_R4(i + 8), SDRT_R4(i + 12)
#define SDRT_WGMMA_AS(N, TYPE, NAME, LIST, DA, DB, ADD, ...)                                                           \
    static __device__ __forceinline__ void run(NAME, float(&d)[N / 2], uint64_t a, uint64_t b, int add) {              \
        asm volatile(                                                                                                  \
            "{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" LIST   \
            "}, " DA ", " DB ", p, 1, 1, 0, 0;\n}\n"                                                                   \
            : __VA_ARGS__                                                                                              \
            : "l"(a), "l"(b), "r"(add));                                                                               \
    }
#define SDRT_WGMMA(N, LIST, DA, DB, ADD, ...)                                                                          \
    template <> struct Wgmma<N> {                                                                                      \
        SDRT_WGMMA_AS(N, "f16", half, LIST, DA, DB, ADD, __VA_ARGS__)                                                  \
        SDRT_WGMMA_AS(N, "bf16", __nv_bfloat16, LIST, DA, DB, ADD, __VA_ARGS__)                                        \
    };
SDRT_WGMMA(16, "%0, %1, %2, %3, %4, %5, %6, %7", "%8", "%9", "%10", SDRT_R4(0), SDRT_R4(4))
SDRT_WGMMA(64,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31",
           "%32", "%33", "%34", SDRT_R16(0), SDRT_R16(16))
SDRT_WGMMA(80,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
           "%32, %33, %34, %35, %36, %37, %38, %39",
           "%40", "%41", "%42", SDRT_R16(0), SDRT_R16(16), SDRT_R4(32), SDRT_R4(36))
SDRT_WGMMA(96,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
           "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47",
           "%48", "%49", "%50", SDRT_R16(0), SDRT_R16(16), SDRT_R16(32))
SDRT_WGMMA(128,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
           "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
           "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63",
           "%64", "%65", "%66", SDRT_R16(0), SDRT_R16(16), SDRT_R16(32), SDRT_R16(48))
SDRT_WGMMA(160,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
           "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
           "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
           "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79",
           "%80", "%81", "%82", SDRT_R16(0), SDRT_R16(16), SDRT_R16(32), SDRT_R16(48), SDRT_R16(64))
SDRT_WGMMA(256,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
           "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
           "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
           "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
           "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
           "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
           "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127",
           "%128", "%129", "%130", SDRT_R16(0), SDRT_R16(16), SDRT_R16(32), SDRT_R16(48), SDRT_R16(64), SDRT_R16(80), SDRT_R16(96), SDRT_R16(112))
#undef SDRT_WGMMA
#undef SDRT_WGMMA_AS

// sum += A [64,16] B [16,n]: A in registers (fragments as of mma.m16n8k16, a warp's 16 rows), B in shared memory as rows of
// k, so that n runs along the 128 bytes of a row; the next 64 columns lie in the next tile.
template <int N> struct WgmmaRegisters;
#define SDRT_WGMMA_AS(N, TYPE, NAME, LIST, A, DB, ADD, ...)                                                            \
    static __device__ __forceinline__ void run(NAME, float(&d)[N / 2], const uint32_t(&a)[4], uint64_t b, int add) {   \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD                                                           \
                     ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" LIST "}, {" A "}, " DB  \
                     ", p, 1, 1, 1;\n}\n"                                                                              \
                     : __VA_ARGS__                                                                                     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                  \
    }
#define SDRT_WGMMA(N, LIST, A, DB, ADD, ...)                                                                           \
    template <> struct WgmmaRegisters<N> {                                                                             \
        SDRT_WGMMA_AS(N, "f16", half, LIST, A, DB, ADD, __VA_ARGS__)                                                   \
        SDRT_WGMMA_AS(N, "bf16", __nv_bfloat16, LIST, A, DB, ADD, __VA_ARGS__)                                         \
    };
SDRT_WGMMA(40,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19",
           "%20, %21, %22, %23", "%24", "%25", SDRT_R16(0), SDRT_R4(16))
SDRT_WGMMA(64,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31",
           "%32, %33, %34, %35", "%36", "%37", SDRT_R16(0), SDRT_R16(16))
SDRT_WGMMA(80,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
           "%32, %33, %34, %35, %36, %37, %38, %39",
           "%40, %41, %42, %43", "%44", "%45", SDRT_R16(0), SDRT_R16(16), SDRT_R4(32), SDRT_R4(36))
SDRT_WGMMA(160,
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
           "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
           "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
           "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
           "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79",
           "%80, %81, %82, %83", "%84", "%85", SDRT_R16(0), SDRT_R16(16), SDRT_R16(32), SDRT_R16(48), SDRT_R16(64))
#undef SDRT_WGMMA
#undef SDRT_WGMMA_AS
#undef SDRT_R16
#undef SDRT_R4
