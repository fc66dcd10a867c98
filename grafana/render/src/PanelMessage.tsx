// Owns the message in a panel without content.
import { css } from '@emotion/css';
import { Text } from '@grafana/ui';

interface Props {
  children: string;
  isError?: boolean;
}

const centered = css({
  display: 'flex',
  height: '100%',
  alignItems: 'center',
  justifyContent: 'center',
  textAlign: 'center',
});

export function PanelMessage({ children, isError = false }: Props) {
  return (
    <div className={centered}>
      <Text color={isError ? 'error' : 'secondary'}>{children}</Text>
    </div>
  );
}
