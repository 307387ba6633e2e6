/** `npm start`: distils a recommender from a language model on the MovieTweetings ratings beside this file. */
import { join } from 'node:path';
import { run } from '../../dist/cli/main.js';

const config = join(import.meta.dirname, 'distill.yaml');
process.exitCode = await run(['distill', config, ...process.argv.slice(2)]);
