#!/bin/sh
# Tries the packages that scripts/release.sh made, as somebody has them who has no compiler: in a Debian 13 with Python
# alone. Their sizes and the libraries that they ask for; the time from installing to the first caption; Python's tests
# with each build that this processor can run, transformers' numbers among them, and those for the archive's programs;
# what is said on a processor that is too old (qemu-user, where it is installed).
# scripts/release/speed.py compares the archive's program with one compiled for this machine.
set -eu
cd "$(dirname "$0")/.."
. scripts/debian.sh
can_have_debian || { echo "error: a Debian of its own takes root and debootstrap" >&2; exit 1; }
work=$PWD/target/packages
root=$PWD/target/debian-13
wheel=$(echo "$work"/llava_sae-*.whl)
archive=$(echo "$work"/llava-sae-cpp-*.tar.gz)
[ -e "$wheel" ] || { echo "error: scripts/release.sh has to run before" >&2; exit 1; }
fail() { echo "check-release: $*" >&2; exit 1; }

for package in "$wheel" "$archive"; do
    size=$(stat -c %s "$package")
    echo "check-release: $((size / 100000))e5 bytes $(basename "$package")"
    [ "$size" -le 60000000 ] || fail "more than 60 MB"
done
"$work/tools/bin/auditwheel" show "$wheel" | tr '\n' ' ' | grep -q 'platform tag: "manylinux_2_31_x86_64"' ||
    fail "$("$work/tools/bin/auditwheel" show "$wheel")"

debian trixie "$root" python3,python3-venv
tests="pytest scipy pandas pillow safetensors"
# shellcheck disable=SC2086 # a list of words
with_python_tests "$root" "$work/tools/bin/pip" "$work/downloads" "$wheel" $tests
mkdir "$root/check/archive"
cp scripts/release/first.sh scripts/release/tests.sh "$root/check"
tar -x -C "$root/check/archive" --strip-components=1 -f "$archive"
inside() { in_debian "$root" "$work/downloads:/downloads" "$@"; }

# Each program asks for glibc's libraries and GCC's own alone.
for program in "$root"/check/archive/builds/*/llava-sae-cpp; do
    readelf -d "$program" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' |
        grep -vxE 'lib(c|m|dl|rt|pthread|gcc_s)\.so\.[0-9]+|ld-linux-x86-64\.so\.2' && fail "$program asks for these"
    readelf -V "$program" | grep -oE 'GLIBC_2\.[0-9]+' | sort -Vu | tail -1 | grep -qE '2\.([0-9]|[12][0-9]|3[01])$' ||
        fail "$program asks for a newer glibc than 2.31"
done

inside -- sh /check/first.sh | tee "$work/first.txt"
took=$(sed -n 's/.*caption: \(.*\) ms/\1/p' "$work/first.txt")
[ "$took" -le 12000 ] || fail "more than 12 s from installing to the first caption"
grep -qx "The image shows a carrot at the bottom, on calm water." "$work/first.txt" || fail "another caption"
sed '/^#/d' launcher/processors.txt | while read -r build _; do
    # shellcheck disable=SC2086 # a list of words
    inside -- LLAVA_SAE_PROCESSOR="$build" sh /check/tests.sh $tests </dev/null
done

# A processor without vectors, as Linux tells of it, and as programs find it.
echo "flags : fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt" >"$work/cpuinfo"
said="error: this processor is too old for this package: it lacks avx2, fma, bmi2, f16c"
inside "$work/cpuinfo:/proc/cpuinfo" -- /venv/bin/llava-sae-cpp --version 2>"$work/said.txt" && fail "it is not refused"
grep -qx "$said" "$work/said.txt" || fail "$(cat "$work/said.txt")"
if command -v qemu-x86_64-static >/dev/null; then
    qemu-x86_64-static -cpu Nehalem "$root/check/archive/llava-sae-cpp" --version 2>"$work/said.txt" &&
        fail "it is not refused"
    grep -qx "$said" "$work/said.txt" || fail "$(cat "$work/said.txt")"
    qemu-x86_64-static -cpu Haswell "$root/check/archive/llava-sae-cpp" --version
else
    echo "check-release: left out, the archive's program on an older processor: it needs qemu-x86_64-static" >&2
fi
echo "check-release: all is well"
