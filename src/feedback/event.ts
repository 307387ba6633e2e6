/** What users did with what they were shown. */
export type EventType = 'view' | 'click' | 'purchase' | 'rating' | 'dismiss';

export interface FeedbackEvent {
  /** The client's own id: an event that comes twice counts once. */
  readonly id?: string;
  readonly userId: string;
  readonly itemId: string;
  readonly type: EventType;
  /** Of a rating: 1 to 5. */
  readonly value?: number;
  /** ms since epoch. */
  readonly time?: number;
  /** Strategy that showed the item, as the answer named it. */
  readonly strategy?: string;
  /** Answer that showed the item. */
  readonly requestId?: string;
}
