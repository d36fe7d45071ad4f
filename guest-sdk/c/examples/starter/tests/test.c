#include "testing.h"

static void visits_are_counted_per_page(void) {
    FS_GIVEN({"visits.home"}, {"visits.about"}, {"visits.home"});

    FS_EQUAL(fs_test_query("visits", "\"home\""), "2");
    FS_EQUAL(fs_test_get("page/about"), "1");
    fs_test_same_for_any_batching();
}

static void page_that_nobody_visited_is_not_found(void) {
    FS_EQUAL(fs_test_query("visits", "\"nowhere\""), NULL);
    FS_CHECK(fs_test_status() == FS_NOT_FOUND);
}

int main(void) {
    FS_TEST(visits_are_counted_per_page);
    FS_TEST(page_that_nobody_visited_is_not_found);
    return fs_test_end();
}
