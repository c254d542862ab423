#!/bin/sh
# The tests of numbers on a Vulkan device instead of the processor: model, projector and SAE lie in its
# memory. On a machine without a GPU it is Mesa's software device, which needs no hardware.
#   sh scripts/test-vulkan.sh [TEST...]
# On Debian and Ubuntu it installs what is missing. Building takes about 15 minutes on two cores.
set -eu
. "$(dirname "$0")/setup.sh"

target=$PWD/target/vulkan
newer=$target/debian13 # what Debian 13 has, where this system's is too old

# ggml-vulkan needs this type, which Vulkan's headers have since 1.3.272; Debian 12's are older.
has_headers() { grep -qs "VkLayerSettingEXT" /usr/include/vulkan/vulkan_core.h; }

# Mesa 22.3, Debian 12's, crashes in its software device: seen with files of several number types.
has_driver() {
    mesa=$(dpkg-query --show --showformat '${Version}' mesa-vulkan-drivers 2>/dev/null) || return 0
    dpkg --compare-versions "$mesa" ge 24
}

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

# By an apt that knows Debian 13 only, installs nothing and changes nothing of the system.
fetch_newer() {
    echo "test-vulkan: this system's Vulkan is too old; unpacking Debian 13's in $newer" >&2
    apt=$target/apt
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$newer"
    : >"$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "http://deb.debian.org/debian trixie main" >"$apt/sources.list"
    set -- -qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- \
        -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status" \
        -o "Dir::Cache=$apt" -o APT::Sandbox::User=root
    apt-get "$@" update
    apt-get "$@" install --no-install-recommends --download-only -y \
        libvulkan-dev mesa-vulkan-drivers libstdc++6 libgomp1 >/dev/null
    for package in "$apt"/archives/*.deb; do
        dpkg-deb --extract "$package" "$newer"
    done
    rm -r "$apt"
    touch "$newer/complete"
}

if ! has_headers || ! has_driver; then
    [ -e "$newer/complete" ] || fetch_newer
    export CPLUS_INCLUDE_PATH="$newer/usr/include${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}"
    # Cargo starts programs with this: Debian 13's loader, so that they get its libraries.
    host=$(rustc -vV | sed -n 's/^host: //p')
    loader=$(echo "$newer"/usr/lib*/ld-linux-*)
    libraries=$(echo "$newer"/usr/lib/*-linux-gnu)
    variable=CARGO_TARGET_$(echo "$host" | tr 'a-z-' 'A-Z_')_RUNNER
    export "$variable=$loader --library-path $libraries"
    export VK_DRIVER_FILES="$newer/usr/share/vulkan/icd.d/lvp_icd.json"
fi

# ggml passes over software devices unless one is named, and multiplies f32 in f16 unless told not to.
export GGML_VK_VISIBLE_DEVICES="${GGML_VK_VISIBLE_DEVICES:-0}" GGML_VK_DISABLE_F16=1
set_up="--release --locked --features vulkan --target-dir $target"
# shellcheck disable=SC2086 # words
said=$(cargo run $set_up -- -v -n 1 assets/pictures/boat.png 2>&1) || true
if ! echo "$said" | grep -o "using device Vulkan.*"; then
    echo "$said" | tail -5 >&2
    echo "error: llama.cpp uses no Vulkan device" >&2
    exit 1
fi
# Mesa's software device now and then crashes while it compiles shaders, which its cache keeps: then a
# group of tests is run again. A failed test is not.
run_group() {
    log=$target/$1.log
    for attempt in 1 2 3; do
        # shellcheck disable=SC2086
        cargo test $set_up --test it -- --test-threads=1 "$1" >"$log" 2>&1 && cat "$log" && return 0
        grep -q "(signal: " "$log" || break
        echo "test-vulkan: the device crashed in \`$1\` (attempt $attempt)" >&2
    done
    cat "$log"
    return 1
}

# Each group is one process, so that it gets the libraries above. One test after the other, since the
# sessions of a process share ggml's device.
[ $# -gt 0 ] || set -- centred:: chunks:: cross_layer:: families:: gemma3:: gemma4:: gemma4_pictures:: next:: oracle:: others:: vision:: hook:: hook_points:: interventions:: passes:: prompt_store:: qwen:: sae_formats:: tiles:: transcoders::
failed=
for group; do
    run_group "$group" || failed="$failed $group"
done
if [ -n "$failed" ]; then
    echo "error: not all tests pass on the device:$failed" >&2
    exit 1
fi
