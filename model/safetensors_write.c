/* model/safetensors_write.c - the writing half of safetensors.h.
 *
 * The header is padded with spaces so that data begins at a multiple of 64 bytes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "model/safetensors.h"

enum { DATA_ALIGN_BYTES = 64, LENGTH_BYTES = 8 };

struct safetensors_writer {
    char *path;
    int fd;
    size_t written_bytes, data_bytes;
    int rc; /* first failure of a write */
};

static bool is_plain_name(const char *name)
{
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == '"' || *c == '\\')
            return false;
    return *name != '\0';
}

/* Appends one line of the header and moves *offset to the end of the tensor's data. */
static int declare(struct buf *text, const struct safetensors_declaration *d, size_t *offset,
                   struct err *e)
{
    size_t bytes = dtype_bytes(d->dtype);
    if (bytes == 0 || !is_plain_name(d->name) || d->n_dims < 0 || d->n_dims > TENSOR_MAX_DIMS)
        return err_set(e, E_INVALID, "tensor %s: cannot be written to a safetensors file", d->name);
    buf_printf(text, "\"%s\":{\"dtype\":\"%s\",\"shape\":[", d->name, dtype_name(d->dtype));
    for (int i = 0; i < d->n_dims; i++) {
        buf_printf(text, "%s%lld", i ? "," : "", (long long)d->dims[i]);
        if (d->dims[i] < 0 || !mem_mul(bytes, (size_t)d->dims[i], &bytes))
            return err_set(e, E_INVALID, "tensor %s: its size overflows", d->name);
    }
    size_t end;
    if (!mem_add(*offset, bytes, &end))
        return err_set(e, E_INVALID, "tensor %s: the file's size overflows", d->name);
    buf_printf(text, "],\"data_offsets\":[%zu,%zu]}", *offset, end);
    *offset = end;
    return 0;
}

static int write_all(struct safetensors_writer *w, const void *data, size_t bytes, struct err *e)
{
    const char *at = data;
    while (bytes > 0) {
        ssize_t n = write(w->fd, at, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            w->rc = err_set_errno(e, errno, "%s: write", w->path);
            return w->rc;
        }
        at += n;
        bytes -= (size_t)n;
    }
    return 0;
}

static void finish_header(struct buf *text)
{
    buf_putc(text, '}');
    while (text->len % DATA_ALIGN_BYTES != 0)
        buf_putc(text, ' ');
    uint64_t length = text->len - LENGTH_BYTES;
    for (int i = 0; i < LENGTH_BYTES; i++)
        text->data[i] = (char)(length >> (8 * i) & 0xff);
}

static void writer_free(struct safetensors_writer **w)
{
    mem_free((*w)->path);
    mem_free(*w);
    *w = NULL;
}

int safetensors_create(const char *path, const struct safetensors_declaration *declarations,
                       int n_tensors, struct safetensors_writer **out, struct err *e)
{
    struct buf text = {0};
    size_t data_bytes = 0;
    int rc = 0;
    buf_append(&text, "\0\0\0\0\0\0\0\0", LENGTH_BYTES);
    buf_puts(&text, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < n_tensors && rc == 0; i++) {
        buf_putc(&text, ',');
        rc = declare(&text, &declarations[i], &data_bytes, e);
    }
    if (rc < 0) {
        buf_fini(&text);
        return err_prefix(e, "%s", path);
    }
    finish_header(&text);
    struct safetensors_writer *w = mem_alloc(sizeof *w);
    w->path = mem_string(path);
    w->data_bytes = data_bytes;
    w->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (w->fd < 0)
        rc = err_set_errno(e, errno, "%s: create", path);
    else
        rc = write_all(w, text.data, text.len, e);
    buf_fini(&text);
    if (rc < 0) {
        if (w->fd >= 0) {
            close(w->fd);
            unlink(path);
        }
        writer_free(&w);
        return rc;
    }
    *out = w;
    return 0;
}

int safetensors_write(struct safetensors_writer *w, const void *data, size_t bytes, struct err *e)
{
    if (w->rc < 0)
        return err_set(e, w->rc, "%s: an earlier write failed", w->path);
    if (bytes > w->data_bytes - w->written_bytes) {
        w->rc = err_set(e, E_RANGE, "%s: more data than was declared", w->path);
        return w->rc;
    }
    int rc = write_all(w, data, bytes, e);
    if (rc == 0)
        w->written_bytes += bytes;
    return rc;
}

int safetensors_finish(struct safetensors_writer **w, struct err *e)
{
    struct safetensors_writer *writer = *w;
    int rc = writer->rc;
    if (rc < 0)
        err_set(e, rc, "%s: an earlier write failed", writer->path);
    else if (writer->written_bytes != writer->data_bytes)
        rc = err_set(e, E_PRECONDITION, "%s: %zu of %zu declared bytes were written", writer->path,
                     writer->written_bytes, writer->data_bytes);
    if (close(writer->fd) < 0 && rc == 0)
        rc = err_set_errno(e, errno, "%s: close", writer->path);
    if (rc < 0)
        unlink(writer->path);
    writer_free(w);
    return rc;
}
