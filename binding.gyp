{
  'targets': [
    {
      'target_name': 'limbeck',
      'sources': ['<!@(node scripts/list-native-sources.mjs)'],
      'include_dirs': ['native'],
      'dependencies': ["<!(node -p \"require('node-addon-api').targets\"):node_addon_api_except_all"],
      'defines': ['NAPI_VERSION=8', 'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS'],
      # Instruction sets are chosen at run time: files under native/cpu name theirs with a target pragma,
      # so the flags here stay those of the oldest supported processor.
      'cflags!': ['-O2'],
      'cflags': ['-O3', '-fvisibility=hidden', '-Wall', '-Wextra', '-pthread'],
      'cflags_cc!': ['-fno-rtti', '-std=gnu++20'],
      'cflags_cc': ['-std=gnu++17', '-fno-math-errno'],
      'ldflags': ['-pthread'],
      'conditions': [
        ["OS=='linux'", {'libraries': ['-ldl']}],  # part of libc from glibc 2.34 on
        ["OS=='mac'", {
          'xcode_settings': {
            'CLANG_CXX_LANGUAGE_STANDARD': 'gnu++17',
            'GCC_ENABLE_CPP_RTTI': 'YES',
            'GCC_OPTIMIZATION_LEVEL': '3',
            'GCC_SYMBOLS_PRIVATE_EXTERN': 'YES',
            'MACOSX_DEPLOYMENT_TARGET': '13.3',  # the first with std::to_chars of a double
            'OTHER_CPLUSPLUSFLAGS': ['-fno-math-errno', '-Wall', '-Wextra'],
          },
        }],
      ],
    },
  ],
}
