#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

// Rows of the bench, one JSON object a line; peers.py writes the same, table.py reads both.

namespace limbeck_bench {

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

inline std::string escape(const std::string& text) {
  std::string result;
  for (char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return result;
}

class JsonLines {
 public:
  /// Null = standard output.
  explicit JsonLines(const char* path) : file_(path == nullptr ? stdout : std::fopen(path, "a")) {
    if (file_ == nullptr) file_ = stdout;
  }
  ~JsonLines() {
    if (file_ != stdout) std::fclose(file_);
  }
  JsonLines(const JsonLines&) = delete;
  JsonLines& operator=(const JsonLines&) = delete;

  /// milliseconds: of one step, an entry a round.
  void row(const std::string& row, const std::string& variant, double value, const char* unit,
           const std::vector<double>& milliseconds) {
    std::fprintf(file_,
                 "{\"row\": \"%s\", \"by\": \"limbeck\", \"variant\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", "
                 "\"ms\": %.6g, \"min\": %.6g, \"max\": %.6g, \"rounds\": %zu}\n",
                 row.c_str(), escape(variant).c_str(), value, unit, median(milliseconds),
                 *std::min_element(milliseconds.begin(), milliseconds.end()),
                 *std::max_element(milliseconds.begin(), milliseconds.end()), milliseconds.size());
    std::fflush(file_);
    if (file_ != stdout) {
      std::printf("  limbeck %s [%s] %.4g %s (%.4g ms)\n", row.c_str(), variant.c_str(), value, unit,
                  median(milliseconds));
      std::fflush(stdout);
    }
  }

  void error(const std::string& row, const std::string& variant, const std::string& message) {
    std::fprintf(file_, "{\"row\": \"%s\", \"by\": \"limbeck\", \"variant\": \"%s\", \"error\": \"%s\"}\n", row.c_str(),
                 escape(variant).c_str(), escape(message).c_str());
    std::fflush(file_);
    if (file_ != stdout) std::printf("  limbeck %s [%s] failed: %s\n", row.c_str(), variant.c_str(), message.c_str());
    std::fflush(stdout);
  }

 private:
  std::FILE* file_;
};

/// `--name value` and `--flag` of a command line.
class Options {
 public:
  Options(int count, char** values) : values_(values + 1, values + count) {}
  bool has(const std::string& name) const { return std::find(values_.begin(), values_.end(), name) != values_.end(); }
  const char* get(const std::string& name, const char* otherwise) const {
    const auto found = std::find(values_.begin(), values_.end(), name);
    return found == values_.end() || found + 1 == values_.end() ? otherwise : (found + 1)->c_str();
  }
  /// Whether `value` is in the comma-separated list of `name`; all are without one.
  bool lists(const std::string& name, const std::string& value) const {
    const char* list = get(name, nullptr);
    return list == nullptr || ("," + std::string(list) + ",").find("," + value + ",") != std::string::npos;
  }
  bool wants(const std::string& part) const { return lists("--parts", part); }

 private:
  std::vector<std::string> values_;
};

/// Random numbers in a hurry (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // [0, 1)
  int32_t below(int64_t count) { return static_cast<int32_t>(next() % static_cast<uint64_t>(count)); }

 private:
  uint64_t state_;
};

}  // namespace limbeck_bench
