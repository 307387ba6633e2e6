/** The Beauty set of the literature, read where it lies; its licence keeps it out of the repository. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Dataset } from '../../src/prepare/dataset.js';
import { prepareDataset } from '../../src/prepare/prepare.js';

export const sharedData = join(import.meta.dirname, '../../../shared/data');
const source = join(sharedData, 'amazon-beauty/sequences.txt');

/** Why tests of Beauty are skipped, if they are. */
export const beautyIsMissing = existsSync(source) ? undefined : `skipped: there is no ${source}`;

/** 22,363 users, 12,101 items, 198,502 interactions; ids are those of the file, items count from 1. */
export async function readBeauty(): Promise<Dataset> {
  const folder = mkdtempSync(join(tmpdir(), 'limbeck-beauty-'));
  try {
    const rows = ['user,item,time'];
    for (const line of readFileSync(source, 'utf8').trimEnd().split('\n')) {
      const [user, ...items] = line.trim().split(' ');
      items.forEach((item, time) => {
        rows.push(`${user},${item},${time}`);
      });
    }
    const path = join(folder, 'interactions.csv');
    writeFileSync(path, `${rows.join('\n')}\n`);
    const columns = { user: 'user', item: 'item', time: 'time' };
    return await prepareDataset({ interactions: { path, columns } });
  } finally {
    rmSync(folder, { recursive: true });
  }
}
