# Included by ggml's build (CMAKE_PROJECT_INCLUDE) for scripts/count-instructions: the architecture that ggml's kernels for
# Arm are compiled for, where the environment names one; llama-cpp-sys-2 says armv8-a.
if(DEFINED ENV{GGML_CPU_ARM_ARCH})
  set(GGML_CPU_ARM_ARCH "$ENV{GGML_CPU_ARM_ARCH}" CACHE STRING "architecture" FORCE)
endif()
