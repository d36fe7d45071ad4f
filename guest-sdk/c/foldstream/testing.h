/* Tests of a projection without Wasm and without a host: an ordinary program.
 *
 *     static void visits_are_counted(void) {
 *         FS_GIVEN({"visits.home"}, {"visits.about"}, {"visits.home"});
 *         FS_EQUAL(fs_test_query("visits", "\"home\""), "2");
 *         FS_EQUAL(fs_test_get("page/about"), "1");
 *         fs_test_same_for_any_batching();
 *     }
 *
 *     int main(void) {
 *         FS_TEST(visits_are_counted);
 *         return fs_test_end();
 *     } */
#ifndef FOLDSTREAM_TESTING_H
#define FOLDSTREAM_TESTING_H

#include "foldstream.h"

/* An event to apply. */
typedef struct {
    const char *subject;
    /* JSON; NULL is an object without fields. */
    const char *data;
    /* NULL is the last token of the subject. */
    const char *kind;
    /* In RFC 3339; NULL is one second after the event before. */
    const char *time;
} fs_given;

/* Runs a test with an empty state. */
#define FS_TEST(function) fs_test_run(#function, (function))
void fs_test_run(const char *name, void (*test)(void));
/* Begins again with an empty state, within a test. */
void fs_test_begin(void);
/* Says how many tests passed; returns what `main` should. */
int fs_test_end(void);

/* Applies events, as one batch. Like a host it ignores events that the manifest's subjects do not
 * match. The test fails if one of them does. */
#define FS_GIVEN(...)                                                                               \
    fs_test_given(__FILE__, __LINE__, (const fs_given[]){__VA_ARGS__},                              \
        sizeof((const fs_given[]){__VA_ARGS__}) / sizeof(fs_given))
void fs_test_given(const char *file, int line, const fs_given *events, size_t count);
/* Applies events of which one fails; returns its message, or NULL if none does. The events before it
 * are kept. */
#define FS_FAILURE(...)                                                                             \
    fs_test_failure((const fs_given[]){__VA_ARGS__},                                                \
        sizeof((const fs_given[]){__VA_ARGS__}) / sizeof(fs_given))
const char *fs_test_failure(const fs_given *events, size_t count);
/* Whether the last failure asks for another attempt. */
bool fs_test_retries(void);
/* Applies the events of a file with lines of JSON, in the format of `foldstream events import`. */
void fs_test_given_file(const char *path);

/* The answer of a query to arguments in JSON, as JSON; NULL if it has none, and then how it failed. */
const char *fs_test_query(const char *name, const char *arguments);
fs_status fs_test_status(void);
/* The stored value of a key, as JSON; NULL if there is none. */
const char *fs_test_get(const char *key);
/* How many entries are stored whose keys begin with a text. */
size_t fs_test_count(const char *prefix);
/* Drops everything that is not in the state, as a restart does. */
void fs_test_restart(void);
/* Applies all events so far again in batches of other sizes, with and without a restart after each,
 * and compares the stored entries. */
#define fs_test_same_for_any_batching() fs_test_same(__FILE__, __LINE__)
void fs_test_same(const char *file, int line);

/* Fails the test, and continues, if a condition does not hold, or two strings differ. */
#define FS_CHECK(condition) fs_test_check(__FILE__, __LINE__, (condition), #condition)
#define FS_EQUAL(got, wanted) fs_test_equal(__FILE__, __LINE__, (got), (wanted))
void fs_test_check(const char *file, int line, bool holds, const char *what);
void fs_test_equal(const char *file, int line, const char *got, const char *wanted);

#endif
