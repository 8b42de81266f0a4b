/* tests/fuzz/fuzz_safetensors.c - any bytes as a safetensors header: refused or accepted,
 * never a crash; and a refusal always says why. */
#include "tests/lib/fuzz.h"

#include "base/must.h"
#include "model/safetensors.h"

FUZZ(safetensors)
{
    struct err e = {0};
    int rc = safetensors_check_header(data, bytes, bytes, &e);
    must(rc == 0 || (rc == e.code && e.text[0] != '\0'));
    /* As the head of a larger file, so that layouts pass whose data is not in the input. */
    rc = safetensors_check_header(data, bytes, bytes + 64, &e);
    must(rc == 0 || (rc == e.code && e.text[0] != '\0'));
}
