#!/bin/sh
# Runs the compiler for CMake. The products of f16 and f32 matrices (the image encoder's) come from GCC 12 of the
# Debian 12 in /build/newer: GCC 10 writes all sums of a block to memory in each step, and takes half as long again.
# That source calls nothing of the C library that a Debian 11 has not.
case "$*" in
*/llamafile/sgemm.cpp*) exec chroot /build/newer /usr/bin/env -C "$PWD" "$@" ;;
esac
exec "$@"
