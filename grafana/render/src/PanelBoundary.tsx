// Owns errors while drawing: one broken panel must not affect the others.
import { Component, type ReactNode } from 'react';

import { PanelMessage } from './PanelMessage';

interface Props {
  index: number;
  children: ReactNode;
}

export class PanelBoundary extends Component<Props, { message?: string }> {
  state: { message?: string } = {};

  static getDerivedStateFromError(error: unknown) {
    return { message: error instanceof Error ? error.message : String(error) };
  }

  componentDidCatch(error: unknown) {
    window.__panelErrors[this.props.index] = error instanceof Error ? error.message : String(error);
  }

  render() {
    const { message } = this.state;
    return message === undefined ? this.props.children : <PanelMessage isError>{message}</PanelMessage>;
  }
}
