# Included by llama.cpp's own CMake project (CMAKE_PROJECT_INCLUDE in config.toml): its sources are
# compiled several at a time, since most of a source's time goes into the headers that they share.
# ggml stays as it is, so that its kernels are those of everybody's llama.cpp.
if(CMAKE_VERSION VERSION_LESS 3.19)
    return()
endif()
if(PROJECT_NAME STREQUAL "llama.cpp")
    set(CMAKE_UNITY_BUILD ON)
    # These two refuse to be compiled together with mtmd's internal headers.
    cmake_language(DEFER CALL set_source_files_properties
        ${CMAKE_SOURCE_DIR}/tools/mtmd/mtmd-helper.cpp
        ${CMAKE_SOURCE_DIR}/tools/mtmd/mtmd-helper-gen.cpp
        TARGET_DIRECTORY mtmd PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
else()
    set(CMAKE_UNITY_BUILD OFF)
endif()
