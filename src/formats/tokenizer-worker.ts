/** A thread of {@link TokenizerPool}. */
import { parentPort, workerData } from 'node:worker_threads';
import { createTokenizer } from './tokenizer.js';
import { packSequences, type TokenizerReply, type TokenizerWorkerData } from './tokenizer-workers.js';

const { json, config } = workerData as TokenizerWorkerData;
const tokenizer = createTokenizer(JSON.parse(json), JSON.parse(config));
const reply = (message: TokenizerReply) => {
  parentPort?.postMessage(message, typeof message === 'string' ? [] : [message.ids.buffer]);
};
parentPort?.on('message', (texts: readonly string[]) => {
  try {
    reply(packSequences(texts.map((text) => tokenizer.encode(text))));
  } catch {
    reply('failed');
  }
});
reply('ready');
