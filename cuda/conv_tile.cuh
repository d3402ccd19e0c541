// Tiles of a convolution's product on Hopper: boxes of pixels by output channels, and what the copy engine brings of them.
#pragma once
#include "conv.cuh"
#include "hopper.cuh"

constexpr int BK = 64;  // channels of a k tile

__device__ __forceinline__ int conv_k_tiles(const Conv2dArgs& a) { return (a.i + BK - 1) / BK * a.k * a.k; }

// One of them: 64 channels of each tap, then the next 64.
struct KTile {
    int channel, ky, kx;

    __device__ __forceinline__ KTile(const Conv2dArgs& a, int index)
        : channel(index / (a.k * a.k) * BK), ky(index / a.k % a.k), kx(index % a.k) {}
    // Without a division: one thread goes through them all, and is not to be waited for.
    __device__ __forceinline__ void next(const Conv2dArgs& a) {
        if (++kx < a.k) return;
        kx = 0;
        if (++ky < a.k) return;
        ky = 0;
        channel += BK;
    }
};

// What one tap needs of a box of pixels is the same box, shifted, and for the copy engine that is one box of the tensor
// [b,h,w,c] of 64 channels: no addresses are computed, and what lies outside the map arrives as zeros, which is the padding.
struct ConvTile {
    Part part;
    int x0, y0, b0;      // of the first pixel, in the part
    int n0;              // the first channel
    int w_bits, h_bits;  // sides of a tile are powers of two

    // Pixel tile `box` of the part, columns of boxes first.
    __device__ __forceinline__ ConvTile(const Conv2dSm90Args& p, const Part& part, int box, int n0)
        : part(part), n0(n0), w_bits(__ffs(p.tile_w) - 1), h_bits(__ffs(p.tile_h) - 1) {
        const int wide = boxes_wide(p, part), high = boxes_high(p, part);
        x0 = box % wide << w_bits;
        y0 = box / wide % high << h_bits;
        b0 = box / wide / high * p.tile_b;
    }

    static __device__ __forceinline__ int boxes_wide(const Conv2dSm90Args& p, const Part& part) {
        return (part.columns + p.tile_w - 1) >> (__ffs(p.tile_w) - 1);
    }
    static __device__ __forceinline__ int boxes_high(const Conv2dSm90Args& p, const Part& part) {
        return (part.rows + p.tile_h - 1) >> (__ffs(p.tile_h) - 1);
    }
    static __device__ __forceinline__ int boxes(const Conv2dSm90Args& p, const Part& part) {
        return boxes_wide(p, part) * boxes_high(p, part) * ((p.conv.b + p.tile_b - 1) / p.tile_b);
    }

    // Of a row of the tile.
    __device__ __forceinline__ int image(int row) const { return b0 + (row >> (w_bits + h_bits)); }
    // Its pixel among out's rows; -1: there is none.
    __device__ __forceinline__ int out_row(const Conv2dSm90Args& p, int row) const {
        const int x = x0 + (row & (p.tile_w - 1)), y = y0 + (row >> w_bits & (p.tile_h - 1));
        return x < part.columns && y < part.rows && image(row) < p.conv.b ? part.out(p.conv, image(row), y, x) : -1;
    }

    __device__ __forceinline__ void copy_x(const Conv2dSm90Args& p, const KTile& k, void* to, uint64_t* barrier) const {
        copy_box_4d(to, &p.x, barrier, k.channel, part.left(p.conv, x0) + k.kx, part.top(p.conv, y0) + k.ky, b0);
    }
    __device__ __forceinline__ int weight_tap(const KTile& k) const { return part.tap + k.ky * part.tap_y + k.kx * part.tap_x; }
};
