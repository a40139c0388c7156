"""Make small tokenizers with the real library and record what it does with difficult texts.

Run with Python and the packages tokenizers and transformers (made with 0.23.2):
    python oracle.py DIR          writes DIR/{gpt2,llama3,qwen2}.json and DIR/golden.jsonl
    python oracle.py DIR TOKENIZER.json N SEED      prints N random texts with their ids as JSON lines
"""
import glob, json, random, sys, unicodedata
import tokenizers
from tokenizers import Tokenizer, AddedToken, Regex, models, normalizers, pre_tokenizers, decoders, processors, trainers

CL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

def build(kind):
    t = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    if kind == "gpt2":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(CL % ("{1,3}" if kind == "llama3" else "")), "isolated")
        t.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if kind == "qwen2":
        t.normalizer = normalizers.NFC()
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    if kind == "gpt2":
        t.add_special_tokens([AddedToken("<|endoftext|>", normalized=True, special=True)])
    elif kind == "qwen2":
        t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ("<|im_start|>", "<|im_end|>")])
        t.add_tokens([AddedToken(s, normalized=False) for s in ("<think>", "</think>")] + [AddedToken("caf\u0065\u0301s", normalized=True)])
    else:
        t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ("<|begin_of_text|>", "<|end_of_text|>", "<|end|>", "<|end|>x")])
        bos = t.token_to_id("<|begin_of_text|>")
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B:1", special_tokens=[("<|begin_of_text|>", bos)])])
    return t

CORPUS = ["The quick brown fox jumps over the lazy dog. It's what they'd said: we're not sure, I'll see.\n\n"
          "In 2024, 1234567 people (about 12.5 %) asked the model what a tokenizer is; the answer was that it isn't a parser.\n"
          "Die Übertragung dauerte länger als gewöhnlich. Le café était fermé. これは日本語の文章です。 Привет, мир! \U0001F600\n"
          "    for i in range(10):\n\t\tprint(i, \"hello world\")\r\n" * 3]

TEXTS = ["", " ", "  ", "Hello world", "hello  world", "   leading", "trailing   ", "a\n\nb", "a \n \n b", "\n\n", " \n", "\r\n\r\nx", "a\t\tb", "\u00a0x", "x\u2003\u2003y",
    "It's IT'S it'S 'sky 'Sky '\u017fky 'RE 'Ve 'll 'lL 'x '' ' s", "don't we've they'd I'm you'll y'all", "1 12 123 1234 12345678 1.5e10 \u0661\u0662\u0663\u0664 \u00bd\u00bc",
    "price: $12.50!!! (really?)...\n\n--", "!!\n\nx", " !!\r\n y", "caf\u00e9 cafe\u0301s cafe\u0301 \u1e69 s\u0323\u0307 \u212b \uac00 \u1100\u1161", "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \u3053\u3093\u306b\u3061\u306f",
    "\U0001F600\U0001F468\u200d\U0001F469\u200d\U0001F467 \u2764\ufe0f", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0928\u092e\u0938\u094d\u0924\u0947", "def f(x):\n    return x**2  # \u03c0\n\n\n", "a" * 100, "ab" * 60, "the " * 40, "=" * 90, "0" * 50,
    "<|endoftext|>", "a<|endoftext|>b <|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n", "<|im_start", "<think>x</think>", "<|end|>x<|end|>y<|end_of_text|>", "<|begin_of_text|>x",
    "x\u0085y \u2028z", "\u200bzero", "a\u0300\u0301b", "\ufeffbom", "\u0130I\u0131i", "\x00\x01\x7f", "tab\tend\t", "\v\f x", "mixed\u00a0 \u00a0spaces", "_under_score __init__", "'", "''s", " 's", "x'", "'s"]

POOL = TEXTS + ["the", " a", "'", "'s", "\n", "\r\n", "  ", "\t", "\u00e9", "e\u0301", "\u4e2d", "\u0e01", "9", "42", "...", "<|", "|>", "\U0001F680", "Hello", "WORLD", " \u00a0", "\u3000", "-", "_", "(", "\ud55c\uae00"]

def random_text(rng):
    parts = []
    for _ in range(rng.randint(1, 12)):
        k = rng.random()
        if k < 0.6:
            parts.append(rng.choice(POOL))
        elif k < 0.8:
            parts.append("".join(chr(rng.randint(32, 126)) for _ in range(rng.randint(1, 8))))
        else:
            c = chr(rng.choice([rng.randint(0, 0x3ff), rng.randint(0x400, 0x2fff), rng.randint(0x3000, 0xd7ff), rng.randint(0xe000, 0xffff), rng.randint(0x10000, 0x1ffff)]))
            if unicodedata.category(c) != "Cn":
                parts.append(c * rng.randint(1, 3))
    return "".join(parts)

def case(t, name, text):
    ids = t.encode(text).ids
    return {"tokenizer": name, "text": text, "ids": ids, "plain": len(t.encode(text, add_special_tokens=False).ids), "decoded": t.decode(ids), "all": t.decode(ids, skip_special_tokens=False)}

if len(sys.argv) == 2:
    out = sys.argv[1]
    with open(out + "/golden.jsonl", "w") as f:
        for kind in ("gpt2", "llama3", "qwen2"):
            t = build(kind)
            d = json.loads(t.to_str())
            if kind == "gpt2":  # older files hold merges as texts
                d["model"]["merges"] = [" ".join(m) for m in d["model"]["merges"]]
            json.dump(d, open(f"{out}/{kind}.json", "w"), ensure_ascii=False, separators=(",", ":"))
            t = Tokenizer.from_file(f"{out}/{kind}.json")
            for text in TEXTS:
                f.write(json.dumps(case(t, kind, text)) + "\n")
            rng = random.Random(7)
            for _ in range(40):
                ids = [rng.randrange(t.get_vocab_size() + 3) for _ in range(rng.randint(1, 12))]
                f.write(json.dumps({"tokenizer": kind, "decode": ids, "decoded": t.decode(ids), "all": t.decode(ids, skip_special_tokens=False)}) + "\n")
else:
    t = Tokenizer.from_file(sys.argv[2])
    rng = random.Random(int(sys.argv[4]))
    for _ in range(int(sys.argv[3])):
        print(json.dumps(case(t, sys.argv[2], random_text(rng))))
