/* tools/bench_probe_amx.c - see bench_probe.h: AMX int8; the rest is AVX-512's.
 *
 * The tile configuration belongs to the thread; whatever a kernel left there is put back. */
#include <immintrin.h>
#include <string.h>

#include "tools/bench_probe.h"

enum { TILE_ROWS = 16, TILE_BYTES = 64, N_TILES = 8, TILES_PER_STEP = 4 };

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == 64, "as the processor reads it");

/* 2 x 2 sums of 16 x 16: the block that keeps the tile unit busy without more loads than
 * products. */
static double int8_amx(long rounds, uint32_t *sink)
{
    static _Alignas(64) const int8_t weights[2][TILE_ROWS][TILE_BYTES] = {{{1, 2, 3}}};
    _Alignas(64) int8_t rows[2][TILE_ROWS][TILE_BYTES];
    _Alignas(64) int32_t out[TILE_ROWS][16];
    struct tile_config before, config = {.palette = 1};
    memset(rows, 1, sizeof(rows));
    for (int i = 0; i < N_TILES; i++) {
        config.row_bytes[i] = TILE_BYTES;
        config.rows[i] = TILE_ROWS;
    }
    _tile_storeconfig(&before);
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long round = 0; round < rounds; round++) {
        _tile_loadd(4, rows[0], TILE_BYTES);
        _tile_loadd(5, rows[1], TILE_BYTES);
        _tile_loadd(6, weights[0], TILE_BYTES);
        _tile_loadd(7, weights[1], TILE_BYTES);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, out, TILE_BYTES);
    *sink += (uint32_t)out[0][0];
    _tile_stored(1, out, TILE_BYTES);
    *sink += (uint32_t)out[0][0];
    _tile_stored(2, out, TILE_BYTES);
    *sink += (uint32_t)out[0][0];
    _tile_stored(3, out, TILE_BYTES);
    *sink += (uint32_t)out[0][0];
    if (before.palette)
        _tile_loadconfig(&before);
    else
        _tile_release();
    return 2.0 * TILES_PER_STEP * TILE_ROWS * 16 * TILE_BYTES * (double)rounds;
}

static double f32_amx(long rounds, uint32_t *sink)
{
    return bench_level_avx512.f32(rounds, sink);
}

const struct bench_level bench_level_amx = {.name = "amx",
                                            .f32 = f32_amx,
                                            .f32_name = "vfmadd zmm",
                                            .q8 = int8_amx,
                                            .q8_name = "tdpbssd",
                                            .q4 = int8_amx,
                                            .q4_name = "tdpbssd"};
