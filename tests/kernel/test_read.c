/* tests/kernel/test_read.c - reading for its own sake leaves no byte out, on every level; and the
 * probe that measures with it. */
#include "base/clock.h"
#include "base/mem.h"
#include "engine/read_probe.h"
#include "tests/lib/test.h"

enum { BYTES = 8 * 1024 };

TEST(read_reads_every_byte)
{
    uint8_t *buffer = mem_aligned(BYTES);
    struct rng r = test_rng();
    for (int i = 0; i < BYTES; i++)
        buffer[i] = (uint8_t)rng_next(&r);
    for (const char *const *name = kernels_names(); *name; name++) {
        const struct kernels *k = kernels_named(*name);
        if (!k)
            continue;
        uint64_t before = k->read(buffer, BYTES);
        for (int i = 0; i < BYTES; i++) {
            buffer[i] ^= 0x40;
            if (k->read(buffer, BYTES) == before)
                test_fail(__FILE__, __LINE__, "%s does not read byte %d", *name, i);
            buffer[i] ^= 0x40;
        }
    }
    mem_free(buffer);
}

TEST(read_probe_measures_something)
{
    struct pool *pool = pool_new(2, POOL_FREE);
    struct read_probe *p = read_probe_open(pool, kernels_best(), 10 << 20);
    CHECK(p != NULL);
    CHECK_INT(read_probe_pass(p), 12 << 20); /* whole tasks of 4 MiB */
    double rate = read_probe_best(p, clock_now_ns, CLOCK_MS);
    CHECK(rate > 1e7 && rate < 1e13);
    CHECK(read_probe_bytes(1) >= 128 << 20 && read_probe_bytes(1000) <= 1 << 30);
    read_probe_close(&p);
    CHECK(p == NULL);
    pool_free(&pool);
}
