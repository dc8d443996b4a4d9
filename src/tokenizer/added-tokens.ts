// Finds added tokens (`<|user|>` and the like) in text: leftmost, then longest, by a trie over UTF-16 code units.
// It knows nothing of merges or bytes. Time is at most text length times the longest token's length.

/** One entry of tokenizer.json's added_tokens. `special` ones are control tokens; the others are ordinary vocabulary. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
  /** The token swallows the white space before it / after it. */
  readonly stripsLeft: boolean;
  readonly stripsRight: boolean;
}

interface TrieNode {
  readonly children: Map<number, TrieNode>;
  token: AddedToken | undefined;
}

export class AddedTokenMatcher {
  readonly #root: TrieNode = { children: new Map(), token: undefined };

  constructor(tokens: Iterable<AddedToken>) {
    for (const token of tokens) {
      let node = this.#root;
      for (let i = 0; i < token.content.length; i++) {
        const unit = token.content.charCodeAt(i);
        let child = node.children.get(unit);
        if (child === undefined) node.children.set(unit, (child = { children: new Map(), token: undefined }));
        node = child;
      }
      node.token = token;
    }
  }

  /** `text` cut into tokens and the non-empty strings between them. */
  split(text: string): (string | AddedToken)[] {
    const parts: (string | AddedToken)[] = [];
    let start = 0;
    for (let i = 0; i < text.length;) {
      const token = this.#longestAt(text, i);
      if (token === undefined) {
        i++;
        continue;
      }
      if (i > start) parts.push(text.slice(start, i));
      parts.push(token);
      i += token.content.length;
      start = i;
    }
    if (start < text.length) parts.push(text.slice(start));
    return parts;
  }

  /** Whether a token stands at `index`, or the text from `index` to `end` is the beginning of one. */
  mayStartAt(text: string, index: number, end: number): boolean {
    let node = this.#root.children.get(text.charCodeAt(index));
    for (let i = index + 1; node !== undefined; i++) {
      if (node.token !== undefined || i === end) return true;
      node = node.children.get(text.charCodeAt(i));
    }
    return false;
  }

  #longestAt(text: string, index: number): AddedToken | undefined {
    let found: AddedToken | undefined;
    let node = this.#root.children.get(text.charCodeAt(index));
    for (let i = index + 1; node !== undefined; i++) {
      found = node.token ?? found;
      node = i < text.length ? node.children.get(text.charCodeAt(i)) : undefined;
    }
    return found;
  }
}
