import { LimbeckError } from '../errors.js';
import { nearestName } from './nearest.js';

const MAX_LISTED_COLUMNS = 20;

/**
 * Position of a column, exactly as it is spelled.
 *
 * @throws ERR_COLUMN_NOT_FOUND with the columns there are; ERR_FILE_FORMAT when it is there twice
 */
export function findColumn(column: string, available: readonly string[], path: string): number {
  const position = available.indexOf(column);
  if (position !== -1 && available.indexOf(column, position + 1) === -1) return position;
  if (position !== -1) throw new LimbeckError('ERR_FILE_FORMAT', `${path} has two columns named "${column}"`);
  const nearest = nearestName(column, available);
  const more = available.length > MAX_LISTED_COLUMNS ? `, and ${available.length - MAX_LISTED_COLUMNS} more` : '';
  const listed = available.slice(0, MAX_LISTED_COLUMNS).map((name) => JSON.stringify(name.slice(0, 80)));
  const hints = [
    nearest === undefined ? '' : ` Did you mean ${JSON.stringify(nearest)}?`,
    available.length === 1 ? ' With a single column, check "delimiter".' : '',
  ];
  throw new LimbeckError(
    'ERR_COLUMN_NOT_FOUND',
    `${path} has no column "${column}"; its columns are ${listed.join(', ')}${more}.${hints.join('')}`,
  );
}
