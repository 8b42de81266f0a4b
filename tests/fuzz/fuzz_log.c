/* tests/fuzz/fuzz_log.c - what lies in a state directory, and what a leader sends to those who copy it:
 * records, their payloads, and answers that may come from anybody.
 *
 * Input: byte 0 says what the rest is.  0: records in their frames.  1 to 4: the payload of a record of
 * that type.  Else: a leader's answers, each u8 stream, u8 flags, u8 n and n bytes, which are
 * sent as they are, or (flag 1) in the frame of a record; flag 2: not where they belong; flag 4: they
 * are said to be a whole snapshot. */
#include "base/must.h"
#include "coordinator/follow.h"
#include "coordinator/records.h"
#include "coordinator/token_log.h"
#include "tests/lib/fuzz.h"

static void check_within(struct str part, struct str whole)
{
    must(part.len == 0 || (part.ptr >= whole.ptr && part.ptr + part.len <= whole.ptr + whole.len));
}

static void read_payload(void *ud, uint8_t type, struct str payload)
{
    struct token_log_model model;
    struct token_log_request request;
    struct token_log_token token;
    struct token_log_end end;
    (void)ud;
    if (type == TOKEN_LOG_MODEL && token_log_read_model(payload, &model)) {
        check_within(model.formats, payload);
        check_within(model.combine, payload);
    }
    if (type == TOKEN_LOG_REQUEST && token_log_read_request(payload, &request)) {
        check_within(request.key, payload);
        check_within(request.body, payload);
    }
    if (type == TOKEN_LOG_TOKEN && token_log_read_token(payload, &token))
        must(token.sampled.n_top <= SAMPLING_MAX_TOP);
    if (type == TOKEN_LOG_END && token_log_read_end(payload, &end)) {
        check_within(end.text, payload);
        must(end.outcome <= TOKEN_LOG_FORGOTTEN);
    }
}

static uint8_t next(struct str *rest)
{
    if (rest->len == 0)
        return 0;
    uint8_t byte = (uint8_t)rest->ptr[0];
    rest->ptr++;
    rest->len--;
    return byte;
}

/* Whatever was said, only whole records are written, and a snapshot only when it has come whole. */
static void take_answer(struct follow *f, const struct follow_answer *a)
{
    struct str records;
    enum follow_act act = follow_take(f, a, &records);
    bool writes = act == FOLLOW_REPLACE || act == FOLLOW_APPEND;
    must(writes == (records.len > 0));
    struct records_end end = records_read(records, read_payload, NULL);
    must(end.bytes == records.len && !end.is_bad);
    must(act != FOLLOW_REPLACE || records.len == f->snapshot_bytes);
    must(act != FOLLOW_ANEW || (f->stream == 0 && f->pending.len == 0));
    follow_written(f, records);
    must(f->pending.len <= f->offset);
}

static void follow(struct str rest)
{
    struct follow f = {0};
    struct buf bytes = {0};
    while (rest.len > 0) {
        uint8_t stream = next(&rest), flags = next(&rest);
        size_t n = next(&rest);
        struct str said = {rest.ptr, n < rest.len ? n : rest.len};
        rest.ptr += said.len;
        rest.len -= said.len;
        buf_reset(&bytes);
        if (flags & 1)
            records_put(&bytes, TOKEN_LOG_TOKEN, said);
        else
            buf_append_str(&bytes, said);
        bool is_new = stream != f.stream;
        uint64_t snapshot = is_new ? ((flags & 4) ? bytes.len : said.len + 3) : f.snapshot_bytes;
        take_answer(&f, &(struct follow_answer){.stream = stream,
                                                .offset = (is_new ? 0 : f.offset) +
                                                          ((flags & 2) ? (uint64_t)stream + 1 : 0),
                                                .snapshot_bytes = snapshot,
                                                .bytes = buf_str(&bytes)});
    }
    follow_fini(&f);
    buf_fini(&bytes);
}

FUZZ(log)
{
    if (bytes < 1)
        return;
    struct str rest = {(const char *)data + 1, bytes - 1};
    if (data[0] == 0)
        records_read(rest, read_payload, NULL);
    else if (data[0] <= TOKEN_LOG_END)
        read_payload(NULL, data[0], rest);
    else
        follow(rest);
}
