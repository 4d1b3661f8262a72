/** A mistake that a person can mend: `message` names the thing, `hint` the mend. */
export class RnnEdgeError extends Error {
  constructor(message, hint) {
    super(message);
    this.name = "RnnEdgeError";
    this.hint = hint;
  }
}
