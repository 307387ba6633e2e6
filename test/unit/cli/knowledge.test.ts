import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { extractKnowledgeCommand } from '../../../src/cli/knowledge.js';
import { askHub, type FakeHub, startFakeHub } from '../../support/fake-hub.js';

const fixture = join(import.meta.dirname, '../../fixtures/gpt2');
const [config, weights] = ['config.json', 'model.safetensors'].map((name) => readFileSync(join(fixture, name)));

let hub: FakeHub;
let root: string;
beforeEach(async () => {
  root = mkdtempSync(join(tmpdir(), 'limbeck-cli-'));
  hub = await startFakeHub({ 'config.json': config as Buffer, 'model.safetensors': weights as Buffer });
  askHub(hub, root);
});
afterEach(async () => {
  vi.unstubAllEnvs();
  await hub.close();
  rmSync(root, { recursive: true });
});

describe('limbeck knowledge extract', () => {
  it('shows the download of a teacher, and can be stopped in it', async () => {
    hub.faults.set('model.safetensors', [{ stallAfter: 1000 }]);
    const texts = join(root, 'texts.txt');
    writeFileSync(texts, 'One text.\n');
    const controller = new AbortController();
    const stderr = new PassThrough();
    let shown = '';
    stderr.on('data', (text) => {
      shown += String(text);
      if (shown.includes('model.safetensors')) controller.abort();
    });
    const flags = { output: join(root, 'store'), hiddenStates: [0], device: 'cpu', threads: 1 };
    const context = { streams: { stdout: new PassThrough(), stderr }, signal: controller.signal };
    const work = extractKnowledgeCommand('hf://someone/small', texts, flags, context);
    await expect(work).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  });
});
