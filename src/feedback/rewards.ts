import { z } from 'zod';
import type { EventType, FeedbackEvent } from './event.js';

const reward = z.number().min(-1).max(1);

/**
 * What an event is worth, −1 to 1. The reward of an answer is its best event plus its worst one below 0, cut to 0 … 1: a
 * click that is followed by a purchase counts as the purchase, events that come twice count once, and a dismissal takes
 * away from what else came of the list.
 */
export const rewardsSchema = z.strictObject({
  /** The item's page was opened. */
  view: reward.default(0.2),
  click: reward.default(0.5),
  purchase: reward.default(1),
  dismiss: reward.default(-0.5),
  /** Of 5 and of 1; linear between. */
  bestRating: reward.default(1),
  worstRating: reward.default(-0.5),
});

export type Rewards = z.input<typeof rewardsSchema>;

/** The reward of one event, −1 to 1; 0 for a type that is not known. */
export function rewardOf(
  { type, value }: Pick<FeedbackEvent, 'type' | 'value'>,
  rewards: z.output<typeof rewardsSchema>,
): number {
  if (type !== 'rating') return rewards[type satisfies Exclude<EventType, 'rating'>] ?? 0;
  if (value === undefined) return 0;
  const share = (Math.min(5, Math.max(1, value)) - 1) / 4;
  return rewards.worstRating + share * (rewards.bestRating - rewards.worstRating);
}
