/* coordinator/web.c - see web.h.  The Makefile builds this file again when one of the pages changes. */
#include "coordinator/web.h"

#include <string.h>

/* The bytes of a file between two symbols; the path is from the root of the repository. */
#define EMBED(symbol, file) \
    __asm__(".section .rodata\n" \
            ".global web_" #symbol "\n" \
            ".global web_" #symbol "_end\n" \
            "web_" #symbol ":\n" \
            ".incbin \"coordinator/web/" file "\"\n" \
            "web_" #symbol "_end:\n" \
            ".byte 0\n" \
            ".text\n"); \
    extern const char web_##symbol[], web_##symbol##_end[]

EMBED(index, "index.html");
EMBED(style, "style.css");
EMBED(icon, "icon.svg");
EMBED(main, "main.js");
EMBED(api, "api.js");
EMBED(chat, "chat.js");
EMBED(ops, "ops.js");
EMBED(plot, "plot.js");

static const char HTML[] = "text/html; charset=utf-8", SCRIPT[] = "text/javascript; charset=utf-8";

static const struct {
    const char *path, *type, *data, *end;
} files[] = {
    {"/", HTML, web_index, web_index_end},
    {"/web/style.css", "text/css; charset=utf-8", web_style, web_style_end},
    {"/web/icon.svg", "image/svg+xml", web_icon, web_icon_end},
    {"/web/main.js", SCRIPT, web_main, web_main_end},
    {"/web/api.js", SCRIPT, web_api, web_api_end},
    {"/web/chat.js", SCRIPT, web_chat, web_chat_end},
    {"/web/ops.js", SCRIPT, web_ops, web_ops_end},
    {"/web/plot.js", SCRIPT, web_plot, web_plot_end},
};

const char web_policy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'";

bool web_find(const char *path, struct web_file *out)
{
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        if (strcmp(files[i].path, path) == 0) {
            size_t bytes = (size_t)(files[i].end - files[i].data);
            *out = (struct web_file){.content_type = files[i].type,
                                     .data = {.ptr = files[i].data, .len = bytes}};
            return true;
        }
    return false;
}
