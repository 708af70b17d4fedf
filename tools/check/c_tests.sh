#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Run C test programs, one after the other: c_tests.sh [--tsan] PROGRAM...
# A program passes with status 0 and skips with 77 (its last line is the reason). Its output is shown only when it fails.
# TEST_SECONDS bounds each one (default 120).
set -u
prefix=""
label=""
if [ "${1:-}" = --tsan ]; then
    shift
    label=" (thread sanitizer)"
    # ThreadSanitizer needs its shadow at fixed addresses, which the kernel's address randomisation may occupy. Without
    # randomisation it always fits; where that may not be switched off, say so instead of failing for no fault of ours.
    if setarch "$(uname -m)" -R true 2>/dev/null; then
        prefix="setarch $(uname -m) -R"
    elif [ "$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 28)" -gt 28 ]; then
        echo "skipped$label: vm.mmap_rnd_bits is above 28 and personality(2) is not permitted here"
        exit 0
    fi
fi
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=0}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1}"
export TSAN_OPTIONS="${TSAN_OPTIONS:-halt_on_error=1:second_deadlock_stack=1}"

passed=0 skipped=0 failed=0
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT INT TERM
for program in "$@"; do
    # shellcheck disable=SC2086  # $prefix is words
    timeout "${TEST_SECONDS:-120}" $prefix "$program" >"$log" 2>&1 </dev/null
    status=$?
    case $status in
    0) passed=$((passed + 1)) ;;
    77)
        skipped=$((skipped + 1))
        echo "SKIP $program: $(tail -n 1 "$log")"
        ;;
    *)
        failed=$((failed + 1))
        cat "$log"
        [ $status -eq 124 ] && echo "FAIL $program: no end after ${TEST_SECONDS:-120} s" || echo "FAIL $program: status $status"
        ;;
    esac
done
echo "C tests$label: $passed passed, $skipped skipped, $failed failed"
[ $failed -eq 0 ]
