#!/bin/sh
# The integration tests on a Vulkan device instead of the processor: model, projector and SAE lie in
# its memory. On a machine without a GPU it is Mesa's software device, which needs no hardware.
#   sh scripts/test-vulkan.sh [TEST]
# On Debian and Ubuntu it installs what is missing. Building takes about 15 minutes on two cores.
set -eu
. "$(dirname "$0")/setup.sh"

target=$PWD/target/vulkan
headers=$target/headers

# ggml-vulkan needs this type, which Vulkan's headers have since 1.3.272; Debian 12's are older.
are_recent() { grep -qs "VkLayerSettingEXT" "$1/vulkan/vulkan_core.h"; }

has_vulkan() {
    command -v glslc >/dev/null && [ -e /usr/include/vulkan/vulkan.hpp ] &&
        [ -d /usr/include/spirv ] && ls /usr/share/vulkan/icd.d/*.json >/dev/null 2>&1
}

if ! has_vulkan; then
    if ! command -v apt-get >/dev/null; then
        echo "error: the Vulkan backend needs glslc, Vulkan's headers and loader, a driver (Mesa)" \
            "and the SPIR-V headers" >&2
        echo "hint: install them with your system's package manager and run this again" >&2
        exit 1
    fi
    echo "test-vulkan: installing glslc, Vulkan's headers and Mesa's drivers with apt-get" >&2
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        glslc libvulkan-dev mesa-vulkan-drivers spirv-headers >/dev/null
fi

# Debian 13's headers, from the mirror of this system, fetched by an apt that knows nothing else and
# changes nothing of the system: they are unpacked here and put first.
fetch_headers() {
    echo "test-vulkan: this system's Vulkan headers are too old; unpacking Debian 13's in $headers" >&2
    apt=$target/apt
    mkdir -p "$apt/lists/partial" "$headers"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "http://deb.debian.org/debian trixie main" >"$apt/sources.list"
    set -- -qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- \
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt" -o APT::Sandbox::User=root
    (cd "$apt" && apt-get "$@" update && apt-get "$@" download libvulkan-dev/trixie)
    dpkg-deb --extract "$apt"/libvulkan-dev_*.deb "$headers"
    rm -r "$apt"
}

if ! are_recent /usr/include; then
    are_recent "$headers/usr/include" || fetch_headers
    export CPLUS_INCLUDE_PATH="$headers/usr/include${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}"
fi

# ggml passes over software devices unless one is named, and multiplies f32 in f16 unless told not to.
export GGML_VK_VISIBLE_DEVICES="${GGML_VK_VISIBLE_DEVICES:-0}" GGML_VK_DISABLE_F16=1
exec cargo test --release --locked --features vulkan --target-dir "$target" --test it -- "$@"
