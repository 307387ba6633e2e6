#include "retrieve/request_text.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

const std::vector<std::string> kNames{"a", "tt0078748", "c d", "{[:,]}", std::string(256, 'x'), std::string(257, 'y')};

ItemNames some_names() {
  ItemNames names;
  for (const std::string& name : kNames) names.append('"' + name + '"');
  return names;
}

bool are_equal(const TextRequests& a, const TextRequests& b) {
  return a.histories == b.histories && a.offsets == b.offsets && a.exclude == b.exclude &&
         a.exclude_offsets == b.exclude_offsets && a.k == b.k && a.unknown == b.unknown;
}

/// The same rule once more, in steps: tokens, then their order, then what they say.
bool expected_request(const std::string& text, int32_t max_k, TextRequests& requests) {
  std::string kinds;  // S for a string, N for a number, others as they are
  std::vector<std::string> words;
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 1;
    if (std::strchr(" \t\r\n", text[i]) != nullptr && text[i] != 0) {
      i = end;
      continue;
    }
    if (text[i] == '"') {
      end = text.find('"', end);
      if (end == std::string::npos) return false;
      ++end;
      kinds += 'S';
    } else if (text[i] >= '0' && text[i] <= '9') {
      while (end < text.size() && text[end] >= '0' && text[end] <= '9') ++end;
      kinds += 'N';
    } else if (text[i] != 0 && std::strchr("{}[]:,", text[i]) != nullptr) {
      kinds += text[i];
    } else {
      return false;
    }
    words.push_back(text.substr(i, end - i));
    i = end;
  }
  // Lists become L, a key with its value P.
  std::string order = kinds;
  for (const auto& [pattern, rest] : std::vector<std::pair<std::string, std::string>>{
           {"[S,S", "[S"}, {"[S]", "L"}, {"[]", "L"}, {"S:L", "P"}, {"S:N", "P"}, {"{P,P", "{P"}}) {
    for (size_t at; (at = order.find(pattern)) != std::string::npos;) order.replace(at, pattern.size(), rest);
  }
  if (order != "{P}") return false;

  std::map<std::string, std::vector<std::string>> values;  // of each key
  std::map<std::string, bool> is_list;
  std::string key;
  for (size_t i = 0; i < words.size(); ++i) {
    if (kinds[i] == 'S' && kinds[i + 1] == ':') {
      key = words[i];
      if (values.count(key) > 0) return false;
      values[key];
      is_list[key] = kinds[i + 2] == '[';
    } else if (kinds[i] == 'S' || kinds[i] == 'N') {
      values[key].push_back(words[i]);
    }
  }
  std::set<std::string> keys{"\"history\"", "\"k\"", "\"exclude\""};
  for (const auto& [name, list] : is_list) {
    if (keys.erase(name) == 0 || list != (name != "\"k\"")) return false;
  }
  int32_t k = 10;
  if (is_list.count("\"k\"") > 0) {
    const std::string digits = values["\"k\""][0];
    if (digits[0] == '0' || digits.size() > 9) return false;
    k = std::stoi(digits);
    if (k > max_k) return false;
  }
  std::vector<int32_t> history, exclude;
  std::string unknown;
  for (const char* list : {"\"history\"", "\"exclude\""}) {
    if (values[list].size() > 1000) return false;
    for (const std::string& word : values[list]) {
      const std::string name = word.substr(1, word.size() - 2);
      if (name.empty() || name.size() > 256) return false;
      for (const char c : name) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte > 0x7e || c == '\\') return false;
      }
      const auto found = std::find(kNames.begin(), kNames.end(), name);
      const bool is_history = list[1] == 'h';
      if (found != kNames.end()) {
        (is_history ? history : exclude).push_back(static_cast<int32_t>(found - kNames.begin()));
      } else if (is_history) {
        unknown += (unknown.empty() ? "" : ",") + word;
      }
    }
  }
  if (history.empty()) return false;
  requests.histories.insert(requests.histories.end(), history.begin(), history.end());
  requests.offsets.push_back(static_cast<int32_t>(requests.histories.size()));
  requests.exclude.insert(requests.exclude.end(), exclude.begin(), exclude.end());
  requests.exclude_offsets.push_back(static_cast<int32_t>(requests.exclude.size()));
  requests.k.push_back(k);
  requests.unknown.push_back(unknown);
  return true;
}

/// Whether text, in memory of its own size (the address sanitizer sees what is read beyond it), and behind another
/// request, is taken or left as the rule says.
bool is_as_expected(const std::string& text, const ItemNames& names) {
  TextRequests requests;
  append_plain_request(R"({"history":["a","-"],"exclude":["c d"],"k":7})", names, 1000, requests);
  TextRequests expected = requests;
  const std::vector<char> alone(text.begin(), text.end());
  const bool is_plain = append_plain_request({alone.data(), alone.size()}, names, 1000, requests);
  return is_plain == expected_request(text, 1000, expected) && are_equal(requests, expected);
}

bool is_plain(const std::string& text, int32_t max_k = 1000) {
  static const ItemNames names = some_names();
  TextRequests requests;
  return append_plain_request(text, names, max_k, requests);
}

std::string list_of(int count, const std::string& name) {
  std::string list = "[";
  for (int i = 0; i < count; ++i) list += (i > 0 ? ",\"" : "\"") + name + '"';
  return list + ']';
}

const std::vector<std::string> kBodies{
    R"({"history":["tt0078748"]})",
    R"({"history":["a","?","tt0078748","?","a"],"k":25,"exclude":["c d","-","a"]})",
    "\n{ \"k\" :\t1000 ,\"exclude\" : [ ] , \"history\"\r: [ \"{[:,]}\" , \"a\" ] } \n",
};

std::string answer_score(uint32_t bits) {
  static const ItemNames names = some_names();
  float score;
  std::memcpy(&score, &bits, sizeof score);
  const int32_t id = 0;
  std::string text;
  append_answer(names, &id, &score, 1, "", text);
  const std::string before = R"("items":[{"id":"a","score":)", after = R"(}],"unknownItems":[])";
  if (text.size() < before.size() + after.size() || text.compare(0, before.size(), before) != 0) return text;
  if (text.compare(text.size() - after.size(), after.size(), after) != 0) return text;
  return text.substr(before.size(), text.size() - before.size() - after.size());
}

struct Number {
  uint32_t bits;
  const char* text;
};

// JSON.stringify(new Float32Array(Uint32Array.of(bits).buffer)[0]) in Node.js 20: where its form changes, the smallest
// and largest, neighbours of round numbers, numbers such as scores are, and any.
const Number kNumbers[] = {
    {0x00000000, "0"},
    {0x80000000, "0"},
    {0x3f800000, "1"},
    {0xbf800000, "-1"},
    {0x41200000, "10"},
    {0x42c80000, "100"},
    {0x47f12000, "123456"},
    {0xc2280000, "-42"},
    {0x4b800000, "16777216"},
    {0x3dcccccd, "0.10000000149011612"},
    {0xbdcccccd, "-0.10000000149011612"},
    {0x3f000000, "0.5"},
    {0x3e800000, "0.25"},
    {0x3eaaaaab, "0.3333333432674408"},
    {0x3f2aaaab, "0.6666666865348816"},
    {0x3727c5ac, "0.000009999999747378752"},
    {0x358637bd, "9.999999974752427e-7"},
    {0x358637bc, "9.99999883788405e-7"},
    {0x33d6bf95, "1.0000000116860974e-7"},
    {0xb3d6bf95, "-1.0000000116860974e-7"},
    {0x34210fb0, "1.500000053056283e-7"},
    {0x322bcc77, "9.99999993922529e-9"},
    {0x2edbe6ff, "1.000000013351432e-10"},
    {0x60ad78ec, "100000002004087730000"},
    {0x6258d727, "1.0000000200408773e+21"},
    {0xe258d727, "-1.0000000200408773e+21"},
    {0x6256ac0a, "989999988174533700000"},
    {0x626e8644, "1.099999986860593e+21"},
    {0x64078678, "9.999999778196308e+21"},
    {0x7f7fffff, "3.4028234663852886e+38"},
    {0xff7fffff, "-3.4028234663852886e+38"},
    {0x00800000, "1.1754943508222875e-38"},
    {0x00000001, "1.401298464324817e-45"},
    {0x80000001, "-1.401298464324817e-45"},
    {0x00000002, "2.802596928649634e-45"},
    {0x000116c2, "9.99994610111476e-41"},
    {0x42f6e979, "123.45600128173828"},
    {0x3a83126f, "0.0010000000474974513"},
    {0x38d1b717, "0.00009999999747378752"},
    {0x4f000000, "2147483648"},
    {0x5a000000, "9007199254740992"},
    {0x62000000, "590295810358705700000"},
    {0x62800000, "1.1805916207174113e+21"},
    {0x47c34f80, "99999"},
    {0x501502f9, "10000000000"},
    {0x3fc00000, "1.5"},
    {0xb5a5b119, "-0.0000012345000186542165"},
    {0x358637bb, "9.999997701015673e-7"},
    {0x358637be, "0.0000010000001111620804"},
    {0x358637bf, "0.0000010000002248489182"},
    {0x6258d725, "999999879303389000000"},
    {0x6258d726, "999999949672133200000"},
    {0x6258d728, "1.0000000904096215e+21"},
    {0x6258d729, "1.0000001607783657e+21"},
    {0x33d6bf93, "9.999998695775503e-8"},
    {0x33d6bf94, "9.999999406318238e-8"},
    {0x33d6bf96, "1.000000082740371e-7"},
    {0x33d6bf97, "1.0000001537946446e-7"},
    {0x3f7ffffe, "0.9999998807907104"},
    {0x3f7fffff, "0.9999999403953552"},
    {0x3f800001, "1.0000001192092896"},
    {0x3f800002, "1.000000238418579"},
    {0x007fffff, "1.1754942106924411e-38"},
    {0x807fffff, "-1.1754942106924411e-38"},
    {0x7f800000, "null"},
    {0xff800000, "null"},
    {0x7fc00000, "null"},
    {0xc0758dc8, "-3.8367786407470703"},
    {0xc077870c, "-3.867617607116699"},
    {0x3eb0c420, "0.3452463150024414"},
    {0x3f8a2448, "1.0792322158813477"},
    {0x4051ef62, "3.280235767364502"},
    {0xc0466b6e, "-3.100306987762451"},
    {0xbd06b280, "-0.032885074615478516"},
    {0x3ec60970, "0.38679075241088867"},
    {0x3f44d020, "0.7688007354736328"},
    {0x40112068, "2.2676029205322266"},
    {0xc06b9838, "-3.6811656951904297"},
    {0x3ff9a704, "1.9504094123840332"},
    {0x406e7e90, "3.7264747619628906"},
    {0xc05a4840, "-3.4106597900390625"},
    {0x3fcc65c0, "1.5968551635742188"},
    {0xbea2a2a0, "-0.31764698028564453"},
    {0xbf540078, "-0.828132152557373"},
    {0x406b465e, "3.6761698722839355"},
    {0xbf404168, "-0.7509980201721191"},
    {0x4067d0b4, "3.6221132278442383"},
    {0x407cc368, "3.9494266510009766"},
    {0x3fa7a11c, "1.3096041679382324"},
    {0xbf1de8f0, "-0.6168355941772461"},
    {0xba1e2000, "-0.0006031990051269531"},
    {0xbfd9d1f4, "-1.7017197608947754"},
    {0xbf1d13a8, "-0.6135811805725098"},
    {0x3fb386c0, "1.4025497436523438"},
    {0xc0307c0a, "-2.757570743560791"},
    {0xc0528cd8, "-3.289846420288086"},
    {0x40349340, "2.8214874267578125"},
    {0xbfc0f5bc, "-1.5074992179870605"},
    {0xc07c613e, "-3.9434351921081543"},
    {0xbe98ea60, "-0.2986631393432617"},
    {0xbfd55260, "-1.6665763854980469"},
    {0x3f1578c8, "0.5838742256164551"},
    {0x406caf8a, "3.698214054107666"},
    {0xc07814ec, "-3.876276969909668"},
    {0x400f3c12, "2.238041400909424"},
    {0xbfca7f8c, "-1.582017421722412"},
    {0xbfb72850, "-1.430917739868164"},
    {0x4068f42e, "3.6399035453796387"},
    {0x3ebfce60, "0.3746213912963867"},
    {0x3fab46c0, "1.3380966186523438"},
    {0x3fa0bb60, "1.2557182312011719"},
    {0x3f7cc1a8, "0.9873299598693848"},
    {0xc02d70b8, "-2.7100048065185547"},
    {0x405bae4c, "3.4325132369995117"},
    {0x4008eb9e, "2.139380931854248"},
    {0xbeafda80, "-0.3434638977050781"},
    {0x3fe71898, "1.8054380416870117"},
    {0xbfac43b4, "-1.3458161354064941"},
    {0x3fd9c154, "1.7012124061584473"},
    {0x3f1bc1a0, "0.6084232330322266"},
    {0xc2ecfeb0, "-118.4974365234375"},
    {0x34ba584b, "3.4709441365521343e-7"},
    {0xabffc36b, "-1.8173079143965487e-12"},
    {0xdf693e35, "-16806929133509542000"},
    {0xecf6526b, "-2.3822796758272798e+27"},
    {0x24928d1e, "6.355646868762618e-17"},
    {0x59a43ca7, "5778573017219072"},
    {0xcb0bc353, "-9159507"},
    {0x2d14c782, "8.457125624805606e-12"},
    {0x67700ea3, "1.133637955693575e+24"},
    {0xb9352037, "-0.0001727350609144196"},
    {0x3f6ae453, "0.9175464510917664"},
    {0xdeb8a849, "-6652982681707479000"},
    {0x5f2d8c1e, "12505403250649858000"},
    {0xb137ab1e, "-2.67272737275448e-9"},
    {0xe54041d3, "-5.674428795175656e+22"},
    {0xeb978a40, "-3.664013318561315e+26"},
    {0xc8820a97, "-266324.71875"},
    {0x18b18e3b, "4.5897043703939355e-24"},
    {0x9c6b5555, "-7.786526664542174e-22"},
    {0x942dab14, "-8.768007153744796e-27"},
    {0x1790355d, "9.319252677254342e-25"},
    {0xc7afce36, "-90012.421875"},
    {0x606af5d6, "67722694678630370000"},
    {0x48365b8d, "186734.203125"},
    {0x6459801a, "1.6048696617524888e+22"},
    {0xb7c26c10, "-0.000023176922695711255"},
    {0xbce46084, "-0.0278780534863472"},
    {0x8f366a3f, "-8.993755050231739e-30"},
    {0xe744144f, "-9.259584580738536e+23"},
    {0x347eef89, "2.3742735777432245e-7"},
    {0xd2210496, "-172891668480"},
    {0x00f2f85c, "2.2313284626595645e-38"},
    {0x059d4ce7, "1.4792458505903906e-35"},
    {0x1bfa6892, "4.1426607608236236e-22"},
    {0xe98f34d4, "-2.1640733246468102e+25"},
    {0x4df4e25f, "513559520"},
    {0xee12b396, "-1.1350479377649957e+28"},
    {0x2f542adb, "1.9296512998590032e-10"},
    {0x9a3f558f, "-3.9566987931035295e-23"},
    {0x580b5000, "612702854578176"},
    {0xc537ec6d, "-2942.776611328125"},
    {0x732b27ec, "1.3560371011815663e+31"},
    {0x7d6521e7, "1.903557762923099e+37"},
    {0x5ac9a1c4, "28377166752251904"},
    {0x620306de, "604254576666252100000"},
    {0xa023c31e, "-1.3871195902115445e-19"},
    {0x72db7f3a, "8.695171152284369e+30"},
    {0x2403e91c, "2.8603548240059074e-17"},
    {0x9a507703, "-4.3109528753554913e-23"},
    {0xa364a7c8, "-1.2395433828005128e-17"},
    {0x759e449e, "4.012571413824357e+32"},
    {0x5c5592a4, "240461612446646270"},
    {0x1f5f8a88, "4.733667717365998e-20"},
    {0x2f1b5555, "1.4127483904946558e-10"},
    {0x00502b53, "7.362381493907123e-39"},
    {0xdf9b95e3, "-22422232873096446000"},
    {0xea52f77c, "-6.376078350915152e+25"},
    {0x5af8c2c3, "35009968499326976"},
    {0x01b4e3e4, "6.644856424338851e-38"},
    {0x257991ef, "2.1646751500718238e-16"},
    {0x38b1573a, "0.00008456264913547784"},
    {0x54ae09c3, "5979904671744"},
    {0x61354c56, "209022578833519280000"},
    {0xb9d44e28, "-0.00040494021959602833"},
    {0x18e6dad3, "5.967456252249674e-24"},
    {0x2076aade, "2.0893545712384374e-19"},
    {0x13603352, "2.8298077710730423e-27"},
    {0xc556f89b, "-3439.537841796875"},
    {0x86c09728, "-7.244447706197945e-35"},
    {0x698c4454, "2.1196535649173176e+25"},
    {0xbe6595f9, "-0.2242049127817154"},
    {0xa5ee470f, "-4.1334569904321456e-16"},
    {0x17f43836, "1.5782320062324753e-24"},
    {0x62b18f8d, "1.6377088124828653e+21"},
    {0xee9ad6e1, "-2.396023208517166e+28"},
    {0x974e02d9, "-6.656578416387586e-25"},
    {0x389729c8, "0.00007208023453131318"},
    {0xb6a75f5a, "-0.000004988088221580256"},
    {0xdaf8e323, "-35027766843801600"},
    {0x6b6b8c39, "2.847597503814518e+26"},
    {0xf7a5087e, "-6.694540810027754e+33"},
    {0x88b82472, "-1.1082665432018147e-33"},
    {0xb99ced89, "-0.0002993161615449935"},
};

}  // namespace

TEST("request text: requests are packed one behind the other") {
  const ItemNames names = some_names();
  TextRequests requests;
  CHECK(requests.size() == 0 && requests.largest_k() == 0);
  for (const std::string& body : kBodies) CHECK(append_plain_request(body, names, 1000, requests));
  CHECK(requests.size() == 3);
  CHECK(requests.histories == std::vector<int32_t>{1, 0, 1, 0, 3, 0});
  CHECK(requests.offsets == std::vector<int32_t>{0, 1, 4, 6});
  CHECK(requests.exclude == std::vector<int32_t>{2, 0});
  CHECK(requests.exclude_offsets == std::vector<int32_t>{0, 0, 2, 2});
  CHECK(requests.k == std::vector<int32_t>{10, 25, 1000});
  CHECK(requests.unknown == std::vector<std::string>{"", R"("?","?")", ""});
  CHECK(requests.largest_k() == 1000);
}

TEST("request text: what is not plain is left to others") {
  const std::string plain = R"({"history":["a"]})";
  CHECK(is_plain(plain));
  for (const char* body : {
           "",
           " ",
           "{}",
           "[]",
           "null",
           R"(["a"])",
           R"({"history":[]})",
           R"({"history":["?"]})",
           R"({"history":"a"})",
           R"({"history":{"a":1}})",
           R"({"history":[1]})",
           R"({"history":[null]})",
           R"({"history":[["a"]]})",
           R"({"history":["a",]})",
           R"({"history":[,"a"]})",
           R"({"history":["a" "a"]})",
           R"({"history":["a"],})",
           R"({,"history":["a"]})",
           R"({"history":["a"]},)",
           R"({"history":["a"]}{})",
           R"({"history":["a"]} x)",
           R"({"history":["a"],"history":["a"]})",
           R"({"history":["a"],"exclude":[],"exclude":[]})",
           R"({"history":["a"],"userId":"u"})",
           R"({"history":["a"],"__proto__":[]})",
           R"({"history":["a"],"":1})",
           R"({"History":["a"]})",
           R"({"exclude":["a"]})",
           R"({"k":1})",
           R"({"history":[""]})",
           R"({history:["a"]})",
           R"({'history':['a']})",
           R"({"history":["\u0061"]})",
           R"({"\u006b":1,"history":["a"]})",
           R"({"history":["a\\"]})",
           R"({"history":["a","é"]})",
           "{\"history\":[\"a\",\"\t\"]}",
           "{\"history\":[\"a\",\"\x7f\"]}",
           "\xef\xbb\xbf{\"history\":[\"a\"]}",
           "\v{\"history\":[\"a\"]}",
           R"({"history":["a"],"exclude":[""]})",
           R"({"history":["a"],"exclude":null})",
           R"({"history":["a"],"exclude":{}})",
           R"({"history":["a"]/**/})",
       }) {
    CHECK(!is_plain(body));
  }
  CHECK(!is_plain(plain + '\0'));
}

TEST("request text: k is a count up to the largest") {
  const auto with_k = [](const std::string& k) { return R"({"history":["a"],"k":)" + k + "}"; };
  for (const char* k : {"1", "9", "10", "999", "1000", " 5 "}) CHECK(is_plain(with_k(k)));
  for (const char* k : {"0", "-1", "+1", "01", "1001", "1.0", "1.", "1e1", "1E1", "\"1\"", "null", "true", "", "1 2",
                        "4294967297", "18446744073709551617", "99999999999999999999999999999999", "[1]", "0x1"}) {
    CHECK(!is_plain(with_k(k)));
  }
  CHECK(is_plain(with_k("2147483647"), std::numeric_limits<int32_t>::max()));
  CHECK(!is_plain(with_k("2147483648"), std::numeric_limits<int32_t>::max()));
  CHECK(is_plain(with_k("3"), 3));
  CHECK(!is_plain(with_k("4"), 3));
}

TEST("request text: lists have at most 1,000 names, names at most 256 characters") {
  const auto request = [](const std::string& history, const std::string& exclude) {
    return "{\"history\":" + history + ",\"exclude\":" + exclude + '}';
  };
  CHECK(is_plain(request(list_of(1000, "a"), list_of(1000, "-"))));
  CHECK(!is_plain(request(list_of(1001, "a"), "[]")));
  CHECK(!is_plain(request("[\"a\"]", list_of(1001, "a"))));
  CHECK(is_plain(request(list_of(1, kNames[4]), list_of(1, kNames[4]))));
  CHECK(!is_plain(request("[\"a\",\"" + kNames[5] + "\"]", "[]")));
  CHECK(!is_plain(request("[\"a\"]", list_of(1, kNames[5]))));
}

TEST("request text: nothing is read beyond the text") {
  const ItemNames names = some_names();
  for (const std::string& body : kBodies) {
    for (size_t size = 0; size <= body.size(); ++size) CHECK(is_as_expected(body.substr(0, size), names));
  }
}

TEST("request text: any other byte anywhere gives what the rule says") {
  const ItemNames names = some_names();
  for (const std::string& body : kBodies) {
    CHECK(is_as_expected(body, names));
    for (size_t place = 0; place < body.size(); ++place) {
      std::string other = body;
      for (int byte = 0; byte < 256; ++byte) {
        other[place] = static_cast<char>(byte);
        CHECK(is_as_expected(other, names));
      }
    }
  }
}

TEST("request text: any order of pieces gives what the rule says") {
  const ItemNames names = some_names();
  const std::vector<std::string> pieces{"{",
                                        "}",
                                        "[",
                                        "]",
                                        ":",
                                        ",",
                                        "\"",
                                        "\\",
                                        " ",
                                        "\n",
                                        "0",
                                        "12",
                                        "-",
                                        "1e3",
                                        "null",
                                        "\"a\"",
                                        "\"?\"",
                                        "\"k\"",
                                        "\"history\"",
                                        "\"exclude\"",
                                        "[\"a\"]",
                                        "\"k\":5",
                                        "\"history\":[\"a\",\"?\"]",
                                        "\"exclude\":[\"a\",\"?\"]",
                                        "é"};
  const Philox random{5, 1};
  uint64_t next = 0;
  const auto below = [&](size_t limit) {
    return std::min(limit - 1, static_cast<size_t>(random.uniform(next++) * static_cast<float>(limit)));
  };
  int num_plain = 0;
  for (int round = 0; round < 30'000; ++round) {
    std::string text;
    if (round % 3 == 0) {  // pieces of the right kind, in any order
      text = "{";
      for (size_t i = below(4) + 1; i > 0; --i) text += pieces[21 + below(3)] + (i > 1 ? "," : "");
      text += "}";
    } else {
      text = kBodies[below(kBodies.size())];
    }
    for (size_t i = below(3); i > 0; --i) {
      const size_t begin = below(text.size() + 1);
      text.replace(begin, below(4), round % 2 == 0 ? pieces[below(pieces.size())] : "");
    }
    CHECK(is_as_expected(text, names));
    num_plain += is_plain(text) ? 1 : 0;
  }
  CHECK(num_plain > 5'000);
  CHECK(num_plain < 25'000);
}

TEST("request text: an answer ends with the first id below 0") {
  const ItemNames names = some_names();
  const int32_t ids[] = {2, 0, 1, -1};
  const float scores[] = {0.5F, -3, 1e-7F, 0};
  std::string text = "{";
  append_answer(names, ids, scores, 4, R"("?","?")", text);
  CHECK(text ==
        R"({"items":[{"id":"c d","score":0.5},{"id":"a","score":-3},{"id":"tt0078748","score":1.0000000116860974e-7}],)"
        R"("unknownItems":["?","?"])");
  text.clear();
  append_answer(names, ids, scores, 1, "", text);
  CHECK(text == R"("items":[{"id":"c d","score":0.5}],"unknownItems":[])");
  text.clear();
  append_answer(names, ids + 3, scores, 1, "", text);
  CHECK(text == R"("items":[],"unknownItems":[])");
  text.clear();
  append_answer(names, nullptr, nullptr, 0, "", text);
  CHECK(text == R"("items":[],"unknownItems":[])");
}

TEST("request text: scores are written as JavaScript writes them") {
  for (const Number& number : kNumbers) CHECK(answer_score(number.bits) == number.text);
}
