import { afterAll, describe, expect, test } from 'vitest';
import { loadBinding } from '../../../src/binding.js';
import { type GenerateOptions, StopSearch, StreamDecoder } from '../../../src/teacher/generate.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { languageModelConfig } from '../../../src/teacher/pretrain.js';
import { generatingModel } from '../../support/generating-model.js';

const engine = loadBinding().createEngine({ threads: 1 });
afterAll(() => engine.dispose());
const POSITIONS = 64;
const model = await generatingModel(engine, { family: 'gpt2', hiddenSize: 16, maxPositionEmbeddings: POSITIONS });
/** Almost every token is one byte, so that characters are spread over tokens. */
const { tokenizer } = model;

const code = (name: string) => expect.objectContaining({ code: name });
const prompt = 'the cat';

async function pieces(options: GenerateOptions): Promise<string[]> {
  const result: string[] = [];
  for await (const piece of model.streamText(prompt, options)) result.push(piece);
  return result;
}

describe('a stream of tokens', () => {
  test('gives whole characters, whose sum is the text of the tokens', () => {
    const text = 'naïve – 日本語 🍺👩‍🔬 end';
    const decoder = new StreamDecoder(tokenizer, tokenizer.encode('the cat'));
    const parts = tokenizer.encode(text).map((id) => decoder.add(id));
    parts.push(decoder.end());
    expect(parts.join('')).toBe(text);
    for (const part of parts) expect(part).not.toMatch(/\uFFFD|[\uD800-\uDBFF]$|^[\uDC00-\uDFFF]/);
    expect(parts).toContain('🍺');
    expect(parts.filter((part) => part === '').length).toBeGreaterThan(10);
  });

  test('gives a mark for bytes that never become a character, as decoding all at once does', () => {
    const bytes = tokenizer.encode('🍺a🍺').filter((_, i) => i !== 3 && i !== 8);
    const decoder = new StreamDecoder(tokenizer);
    const parts = bytes.map((id) => decoder.add(id));
    expect(parts.join('')).toBe('\uFFFDa');
    expect(parts.join('') + decoder.end()).toBe(tokenizer.decode(bytes));
  });
});

describe('a stop', () => {
  test.each([
    [['ab', 'cab', 'x'], ['END'], 'abcabx'],
    [['one E', 'N', 'D two'], ['END'], 'one '],
    [['one E', 'NE', 'ND two'], ['END'], 'one EN'],
    [['aab', 'c'], ['abc', 'aabc'], ''],
    [['first\n', '\nsecond'], ['\n\n', 'sec'], 'first'],
    [['ends with E'], ['END'], 'ends with E'],
  ])('%j until %j is %j', (parts, stops, expected) => {
    const search = new StopSearch(stops);
    let text = '';
    for (const part of parts) {
      if (search.isFound) break;
      text += search.add(part);
      expect(expected.startsWith(text)).toBe(true);
    }
    expect(text + search.end()).toBe(expected);
  });

  test('ends the text before it, in the stream too', async () => {
    const options = { maxNewTokens: 30, temperature: 1, seed: 3 };
    const whole = await model.generate(prompt, options);
    const stop = whole.slice(6, 9);
    expect(stop.length).toBe(3);
    const expected = whole.slice(0, whole.indexOf(stop));
    expect(await model.generate(prompt, { ...options, stop: [stop] })).toBe(expected);
    expect((await pieces({ ...options, stop: [stop, 'never to be seen'] })).join('')).toBe(expected);
  });
});

describe('generation', () => {
  test('streams the text that it returns, the same for the same seed', async () => {
    const options = { maxNewTokens: 40, temperature: 1, topK: 50, topP: 0.9, repetitionPenalty: 1.2, seed: 7 };
    const streamed = await pieces(options);
    expect(streamed.length).toBeGreaterThan(5);
    expect(streamed).not.toContain('');
    expect(streamed.join('')).toBe(await model.generate(prompt, options));
    expect(await model.generate(prompt, { ...options, seed: 8 })).not.toBe(streamed.join(''));
  });

  test('ends at the last position, and at the end-of-text token once it may', async () => {
    const ids = tokenizer.encode(prompt);
    expect((await model.generateIds(ids, { maxNewTokens: 1000 })).length).toBe(POSITIONS - ids.length);
    const { eosTokenId = -1 } = tokenizer;
    const lengths = await Promise.all(
      Array.from({ length: 40 }, async (_, seed) => {
        const drawn = await model.generateIds(ids, { maxNewTokens: 50, minNewTokens: 10, temperature: 5, seed });
        expect(drawn).not.toContain(eosTokenId);
        return drawn.length;
      }),
    );
    expect(Math.min(...lengths)).toBeGreaterThanOrEqual(10);
    expect(Math.min(...lengths)).toBeLessThan(50);
  });

  test('reads the end of a prompt that is too long where it may, and refuses it elsewhere', async () => {
    const long = Array.from({ length: POSITIONS + 20 }, (_, i) => 60 + (i % 50));
    await expect(model.generateIds(long, { maxNewTokens: 4 })).rejects.toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringMatching(/at most 64.*got 84/) }),
    );
    const cut = await model.generateIds(long, { maxNewTokens: 4, longPrompt: 'truncateLeft' });
    expect(cut).toEqual(await model.generateIds(long.slice(-(POSITIONS - 4)), { maxNewTokens: 4 }));
    expect(cut.length).toBe(4);
  });

  test('stops within a text when its signal says so, and when nobody reads on', async () => {
    const controller = new AbortController();
    const seen: string[] = [];
    const read = async () => {
      const options = { maxNewTokens: 50, temperature: 1, seed: 2 };
      for await (const piece of model.streamText(prompt, options, { signal: controller.signal })) {
        seen.push(piece);
        if (seen.length === 3) controller.abort();
      }
    };
    await expect(read()).rejects.toThrow(code('ERR_ABORTED'));
    expect(seen.length).toBe(3);
    await expect(model.generate(prompt, { maxNewTokens: 3 }, { signal: AbortSignal.abort() })).rejects.toThrow(
      code('ERR_ABORTED'),
    );
    for await (const _ of model.streamText(prompt, { maxNewTokens: 50, temperature: 1 })) break;
    expect((await model.generate(prompt, { maxNewTokens: 5 })).length).toBeGreaterThan(0);
  });

  test.each([
    ['maxNewTokens', -1],
    ['temperature', -1],
    ['topK', 1.5],
    ['topP', 0],
    ['repetitionPenalty', 0],
    ['stop', ['']],
  ])('refuses %s = %j by its name', async (key, value) => {
    await expect(model.generate(prompt, { maxNewTokens: 2, [key]: value })).rejects.toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining(key) }),
    );
  });

  test('refuses an option that it does not know, an empty prompt and a masked model', async () => {
    const unknown = { maxNewTokens: 2, maxTokens: 3 };
    await expect(model.generate(prompt, unknown as GenerateOptions)).rejects.toThrow(code('ERR_UNKNOWN_OPTION'));
    await expect(model.generate('', { maxNewTokens: 2 })).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    const masked = LanguageModel.create(
      engine,
      'bert',
      languageModelConfig('bert', tokenizer.vocabSize, { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2 }),
      tokenizer,
      { seed: 1 },
    );
    await expect(masked.generate(prompt, { maxNewTokens: 2 })).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
  });
});
