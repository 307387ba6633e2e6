/**
 * `node examples/next-skill/run.mjs [DIRECTORY] [--json]`: which skill a student of mathematics practises next. DIRECTORY
 * holds the ASSISTments 2009 files; without them there is nothing to run, and it says so.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { run } from '../../dist/cli/main.js';

const folder = import.meta.dirname;
const [first, ...rest] = process.argv.slice(2);
const named = first !== undefined && !first.startsWith('--');
const source = resolve(named ? first : join(process.env.LIMBECK_DATA ?? '.', 'assist2009'));
const flags = named ? rest : process.argv.slice(2);
const names = join(source, 'assist2009_updated_skill_mapping.txt');

if (!existsSync(names)) {
  console.log(`Skipped: '${source}' has no ASSISTments 2009 files. Name the directory that has them.`);
} else {
  const target = join(folder, '../../out/next-skill-data');
  mkdirSync(target, { recursive: true });
  writeFileSync(join(target, 'items.csv'), skillsCsv(readFileSync(names, 'utf8')));
  const parts = ['train', 'test'].map((part) => readFileSync(join(source, `assist2009_updated_${part}.csv`), 'utf8'));
  writeFileSync(join(target, 'interactions.csv'), practiceCsv(parts));
  process.exitCode = await run(['distill', join(folder, 'distill.yaml'), ...flags]);
}

/** Lines `id TAB name`; a name may stand in quotes. */
function skillsCsv(text) {
  const rows = text
    .split('\n')
    .map((line) => line.split('\t'))
    .filter(([id, name]) => id !== '' && name !== undefined)
    .map(([id, name]) => `${id},"${name.trim().replaceAll('"', '')}"`);
  return `id,name\n${rows.join('\n')}\n`;
}

/** Three lines a student: count, skills, answers. A skill counts once, when it is practised first. */
function practiceCsv(texts) {
  const rows = ['student,skill,time'];
  let student = 0;
  for (const text of texts) {
    const lines = text.split('\n');
    for (let line = 1; line < lines.length; line += 3) {
      const skills = new Set(
        lines[line]
          .trim()
          .split(',')
          .filter((skill) => skill !== ''),
      );
      let time = 0;
      for (const skill of skills) rows.push(`s${student},${skill},${time++}`);
      student++;
    }
  }
  return `${rows.join('\n')}\n`;
}
