/** Requests that name a user. */
import { checkList, checkObject, described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import type { History, HistoryRequest, UserRequest } from './request.js';

/** Who knows what users did, such as the UserStates of an event store. */
export interface UserHistories {
  /** What a user chose, oldest first; empty for one who is not known. */
  history(userId: string): History;
  /** Ids of items that must not be recommended to the user. */
  hidden(userId: string): readonly string[];
}

/**
 * The request with the history of its user, who is not recommended what is hidden from them.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT without users, for an id that is none, for a history beside it, and for users
 * that give no lists
 */
export function requestOfUser(request: UserRequest, users: UserHistories | undefined): HistoryRequest {
  const { userId, history, exclude, ...others } = request;
  if (typeof userId !== 'string' || userId === '') {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `userId: expected the id of a user, got ${described(userId)}`);
  }
  if (history !== undefined) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', 'userId: expected a userId or a history, got both');
  }
  if (users === undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'userId: this student knows no users. Set student.users, to the UserStates of an event store say, or give a history.',
    );
  }
  checkObject(users, 'student.users', 'an object with history() and hidden()', ['history', 'hidden']);
  const hidden = users.hidden(userId);
  // A promise, say: what it hides would be recommended.
  checkList(hidden, 'student.users.hidden()', 'a list of item ids');
  // Whatever is no list is named by who packs the request.
  const isMore = hidden.length > 0 && (exclude === undefined || Array.isArray(exclude));
  return { ...others, history: users.history(userId), exclude: isMore ? [...(exclude ?? []), ...hidden] : exclude };
}
