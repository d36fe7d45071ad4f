/* Counts visits per page: the smallest useful projection, to begin from. */
#include "foldstream.h"

/* Everything it keeps, in tables. Entries of this one have keys such as page/home. */
static fs_table pages = FS_TABLE("page", fs_u64, FS_STRING);

/* Applies one event. The page is the second token of the subject, as in visits.home. */
static fs_status apply(const fs_event *event) {
    fs_text page = fs_token(event, 2);
    uint64_t *count = fs_edit(&pages, FS_KEY(page));
    *count += 1;
    return FS_OK;
}

static fs_status visits(const void *arguments, fs_answer *answer) {
    const fs_text *page = arguments;
    const uint64_t *count = fs_get(&pages, FS_KEY(*page));
    if (count == NULL) {
        return FS_NOT_FOUND;
    }
    fs_answer_value(answer, &fs_u64, count);
    return FS_OK;
}

const fs_projection foldstream_projection = {
    .name = "starter",
    .description = "Counts visits per page",
    .subjects = (const char *const[]){"visits.*", NULL},
    .tables = (fs_table *const[]){&pages, NULL},
    .apply = apply,
    .queries =
        (const fs_query[]){
            {.name = "visits",
             .description = "How often a page was visited, by its name: \"home\"",
             .answer = visits,
             .arguments = &fs_string},
            {0},
        },
};
