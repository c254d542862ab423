# Sourced by scripts that need a Debian of their own, which takes root and debootstrap.

# Whether there can be one.
can_have_debian() {
    [ "$(id -u)" = 0 ] && command -v debootstrap >/dev/null
}

# debian SUITE FOLDER PACKAGES: makes one with few packages and these in FOLDER, or leaves the one that is there.
debian() {
    [ ! -e "$2/made" ] || return 0
    rm -rf "$2"
    debootstrap --variant=minbase --include="$3" "$1" "$2" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" \
        >"$2-debootstrap.log" || { tail "$2-debootstrap.log" >&2; return 1; }
    touch "$2/made"
}

# in_debian FOLDER [SOURCE:PLACE]... -- COMMAND...: runs it there, without this system's environment, with folders or
# files of this system in places below FOLDER, which nobody else sees.
in_debian() {
    # shellcheck disable=SC2016 # that shell's own
    unshare --mount sh -eu -c '
        root=$1
        shift
        mount -t proc proc "$root/proc"
        while [ "$1" != -- ]; do
            place=$root${1##*:}
            [ -e "$place" ] || mkdir -p "$place"
            mount --bind "${1%:*}" "$place"
            shift
        done
        shift
        exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
    ' sh "$@"
}

# with_python_tests ROOT PIP DOWNLOADS WHEEL PACKAGES...: puts Python's tests and what they read into ROOT/check of a Debian
# 13, and the wheel and what it and they need, by these packages' names, into DOWNLOADS: that root needs no network.
with_python_tests() {
    check=$1/check pip=$2 downloads=$3
    shift 3
    rm -f "$downloads"/llava_sae-*
    "$pip" download -q -d "$downloads" --only-binary :all: --python-version 3.13 "$@"
    rm -rf "$check"
    mkdir -p "$check/tests" "$check/assets"
    cp -r python "$check/python"
    rm -rf "$check/python/llava_sae"
    cp -r assets/pictures "$check/assets"
    cp -r tests/fixtures "$check/tests"
}
